"""A small real policy, a generator for it, and requests: what the suites for generators share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch

from grpo_core.demo import checkpoint
from grpo_core.policy import Policy
from grpo_core.protocols import Generator
from grpo_core.settings import LoraSettings, ModelSettings, SamplingParams
from grpo_core.types import Completion, GeneratedGroup, GenerateRequest, Prompt, Rollout, Span

TEXTS = ("2 +1 -5 mod 10=?", "7 *3 mod 10=?", "1 *0 -6 -1 +2 mod 10=?")
KEYS = (4, 0, 9)
GROUP = 4


class GeneratorBench:
    """Where the checks of ``GeneratorSuite`` take place."""

    lora: ClassVar[bool] = False
    """Whether the policy trains an adapter."""
    draws: ClassVar[bool] = True
    """False for one that does not sample from the policy (a script)."""
    repeats: ClassVar[bool] = True
    """Whether one request twice gives the same tokens."""
    tolerance: ClassVar[float] = 1e-3
    """Nats between its log-probs and the policy's own of the same token; the update below moves
    them by 0.1 and more."""

    def make(self, policy: Policy) -> Generator:
        """A new generator that can serve this policy; ``sync`` has not been called."""
        raise NotImplementedError

    def _policy(self) -> Policy:
        lora = LoraSettings(r=4) if self.lora else None
        settings = ModelSettings(path=str(checkpoint("plain")), threads=1, lora=lora)
        policy = Policy(settings)
        policy.prepare(optimizer_steps=1, temperature=1.0, tokens_per_microbatch=4096)
        return policy

    @contextmanager
    def _started(self) -> Iterator[tuple[Generator, Policy]]:
        policy = self._policy()
        generator = self.make(policy)
        try:
            assert generator.sync(policy.weight_update()) == policy.version
            yield generator, policy
        finally:
            generator.close()

    def _request(
        self,
        policy: Policy,
        *,
        texts: Sequence[str] = TEXTS,
        keys: Sequence[int] = KEYS,
        seed: int = 0,
        step: int = 3,
        group: int = GROUP,
        max_tokens: int = 20,
        **sampling: Any,
    ) -> GenerateRequest:
        prompts = [Prompt(id=text, content=text) for text in texts]
        return GenerateRequest(
            step=step,
            seed=seed,
            prompt_ids_P=tuple(policy.encoder.encode(prompt) for prompt in prompts),
            prompt_keys_P=tuple(keys[: len(texts)]),
            group_size=group,
            sampling=SamplingParams(max_tokens=max_tokens, **sampling),
            eos_token_ids=policy.eos_token_ids,
        )

    def _tokens(
        self, generator: Generator, request: GenerateRequest
    ) -> list[tuple[tuple[int, ...], ...]]:
        groups = sorted(generator.generate(request), key=lambda group: group.index)
        return [tuple(c.token_ids for c in group.completions_G) for group in groups]

    def _rollouts(self, generator: Generator, policy: Policy, **sampling: Any) -> list[Rollout]:
        request = self._request(policy, **sampling)
        # The policy scores at the temperature that it was prepared for.
        policy.prepare(
            optimizer_steps=1,
            temperature=request.sampling.temperature,
            tokens_per_microbatch=4096,
        )
        return [
            _rollout(request, group, sample, completion)
            for group in generator.generate(request)
            for sample, completion in enumerate(group.completions_G)
        ]

    def _distance(self, rollouts: Sequence[Rollout], policy: Policy) -> float:
        """The largest difference between reported and own log-probs, in nats."""
        own = torch.cat([x.cpu().double() for x in policy.logprobs(rollouts)])
        said = torch.tensor([x for r in rollouts for x in r.sampling_logprobs]).double()
        return float((own - said).abs().max())

    def _is_sound(self, completion: Completion, policy: Policy, *, most: int) -> None:
        ids = completion.token_ids
        assert 1 <= len(ids) <= most
        assert all(0 <= i < len(policy.tokenizer) for i in ids)
        assert len(completion.logprobs) == len(ids)
        assert all(x <= 0 for x in completion.logprobs)
        assert completion.finish_reason in ("stop", "length")
        assert not any(i in policy.eos_token_ids for i in ids[:-1]), "it went on after its end"
        if completion.finish_reason == "length":
            assert len(ids) == most
        else:
            assert ids[-1] in policy.eos_token_ids


@torch.no_grad()
def move(policy: Policy) -> None:
    """An update: every trained weight moves, and the version with them."""
    rng = torch.Generator().manual_seed(1)
    for parameter in policy.model.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=rng, dtype=torch.float32)
            parameter.add_(0.05 * noise.to(parameter))
    policy.version += 1


def _rollout(
    request: GenerateRequest, group: GeneratedGroup, sample: int, completion: Completion
) -> Rollout:
    return Rollout(
        prompt=Prompt(id=str(group.index), content=""),
        prompt_ids=request.prompt_ids_P[group.index],
        group=request.prompt_keys_P[group.index],
        sample=sample,
        spans=(
            Span(
                token_ids=completion.token_ids,
                logprobs=completion.logprobs,
                policy_version=group.policy_version,
            ),
        ),
        text="",
        finish_reason=completion.finish_reason,
    )
