"""A generator and an environment."""

from grpo_core.types import Completion, GeneratedGroup, Rollout, Span


class OneToken:
    """Draws the first token from the policy itself and stops."""

    def __init__(self, config=None, context=None):
        self.update = None

    def sync(self, update):
        self.update = update
        return update.policy_version

    def generate(self, request):
        import torch

        for index, prompt_ids in enumerate(request.prompt_ids_P):
            key = (request.seed, request.step, request.prompt_keys_P[index])
            random = torch.Generator().manual_seed(hash(key) % 2**63)
            with torch.no_grad():
                logits_V = self.update.model(torch.tensor([prompt_ids])).logits[0, -1].float()
            logprobs_V = (logits_V / request.sampling.temperature).log_softmax(-1)
            drawn = torch.multinomial(
                logprobs_V.exp(), request.group_size, replacement=True, generator=random
            ).tolist()
            yield GeneratedGroup(
                index=index,
                completions_G=tuple(
                    Completion(
                        token_ids=(token,),
                        logprobs=(float(logprobs_V[token]),),
                        finish_reason="stop" if token in request.eos_token_ids else "length",
                    )
                    for token in drawn
                ),
                policy_version=self.update.policy_version,
            )

    def close(self):
        self.update = None


class Stamped:
    """One completion is one rollout, stamped for rewards to see."""

    def __init__(self, config=None, context=None):
        pass

    def rollouts(self, request, generator):
        for group in generator.generate(request.generate):
            yield [
                Rollout(
                    prompt=request.prompts_P[group.index],
                    prompt_ids=request.generate.prompt_ids_P[group.index],
                    group=request.generate.prompt_keys_P[group.index],
                    sample=sample,
                    spans=(
                        Span(
                            token_ids=completion.token_ids,
                            logprobs=completion.logprobs,
                            policy_version=group.policy_version,
                        ),
                    ),
                    text=request.decode(completion.token_ids),
                    finish_reason=completion.finish_reason,
                    extra={"stamp": "fake"},
                )
                for sample, completion in enumerate(group.completions_G)
            ]
