"""What every environment promises, as tests to inherit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch

from grpo_core.metrics import StepMetrics
from grpo_core.policy import Policy
from grpo_core.protocols import Environment
from grpo_core.settings import SamplingParams
from grpo_core.testing.config import ScriptedConfig
from grpo_core.testing.reference_suite import make_policy
from grpo_core.testing.scripted import ScriptedGenerator
from grpo_core.trainer.observe import observe_environment
from grpo_core.types import GenerateRequest, Prompt, Rollout, RolloutRequest

GROUP_SIZE = 2
TOLERANCE = 1e-3
"""Nats, between two float32 forward passes; a token out of place changes a log-prob by 0.1 and
more."""


class EnvironmentSuite:
    """Inherit in a test module, and pytest runs every check below with a small real policy::

    class TestMine(EnvironmentSuite):
        completions = (("<tool_call>...</tool_call>", "5"), "straight away")

        def make(self):
            return MyEnvironment(MyConfig(max_turns=3))
    """

    prompts: ClassVar[Sequence[Prompt]] = tuple(
        Prompt(id=f"train/{text}", content=({"role": "user", "content": text},))
        for text in ("2 +3 mod 10=?", "7 *6 mod 10=?")
    )
    completions: ClassVar[Sequence[str | tuple[str, ...]]] = ("5", "no", "2", "why?")
    """What the policy says, see ``ScriptedConfig``."""
    max_tokens: ClassVar[int] = 256

    def make(self) -> Environment:
        """A new environment."""
        raise NotImplementedError

    # -- the checks -----------------------------------------------------------------------------

    def test_whole_groups_each_once(self) -> None:
        policy = make_policy(lora=False)
        groups = self._groups(policy, self.prompts)
        places = [[(r.group, r.sample) for r in group] for group in groups]
        expected = [[(key, s) for s in range(GROUP_SIZE)] for key in range(len(self.prompts))]
        assert sorted(places) == expected

    def test_rollouts_are_whole(self) -> None:
        policy = make_policy(lora=False)
        for rollout in self._rollouts(policy):
            assert rollout.prompt_ids, "a prompt without tokens"
            assert rollout.prompt in self.prompts, "the task's prompt, which rewards compare with"
            assert (rollout.error is not None) == (rollout.finish_reason == "error")
            assert len(rollout.token_ids) <= self.max_tokens, "sampled and inserted together"
            for span in rollout.spans:
                assert span.sampled == (span.policy_version is not None)

    def test_sampled_tokens_are_those_of_the_generator(self) -> None:
        """Their log-probs fit to what stands before them: nothing was tokenised again, left out
        or moved."""
        policy = make_policy(lora=False)
        for rollout in self._rollouts(policy):
            found = torch.tensor(rollout.sampling_logprobs, dtype=torch.float64)
            expected = _full_logprobs(policy, rollout)
            assert len(found) == len(expected)
            assert bool(((found - expected).abs() < TOLERANCE).all())

    def test_the_text_is_what_the_policy_said(self) -> None:
        policy = make_policy(lora=False)
        for rollout in self._rollouts(policy):
            said = "".join(policy.encoder.decode(s.token_ids) for s in rollout.spans if s.sampled)
            assert "".join(rollout.text.split()) == "".join(said.split())

    def test_the_same_again(self) -> None:
        """A function of the request: what is drawn by chance must come from its seed, or a
        resumed run would be another one."""
        policy = make_policy(lora=False)
        assert self._rollouts(policy) == self._rollouts(policy)

    def test_the_same_alone(self) -> None:
        """On another rank, or in another batch."""
        policy = make_policy(lora=False)
        together = self._rollouts(policy)
        for key, prompt in enumerate(self.prompts):
            alone = _in_order(self._groups(policy, [prompt], first_key=key))
            assert alone == [r for r in together if r.group == key]

    def test_metrics_have_names_of_their_own(self) -> None:
        policy = make_policy(lora=False)
        observe_environment(StepMetrics(), self._rollouts(policy))

    def _rollouts(self, policy: Policy) -> list[Rollout]:
        return _in_order(self._groups(policy, self.prompts))

    def _groups(
        self, policy: Policy, prompts: Sequence[Prompt], *, first_key: int = 0
    ) -> list[Sequence[Rollout]]:
        generator = ScriptedGenerator(ScriptedConfig(completions=tuple(self.completions)))
        generator.sync(policy.weight_update())
        sampling = SamplingParams(max_tokens=self.max_tokens, temperature=1.0)
        request = RolloutRequest(
            prompts_P=tuple(prompts),
            generate=GenerateRequest(
                step=0,
                seed=0,
                prompt_ids_P=tuple(policy.encoder.encode(prompt) for prompt in prompts),
                prompt_keys_P=tuple(range(first_key, first_key + len(prompts))),
                group_size=GROUP_SIZE,
                sampling=sampling,
                eos_token_ids=policy.eos_token_ids,
            ),
            decode=policy.encoder.decode,
            encoder=policy.encoder,
            context_length=policy.context_length,
        )
        return list(self.make().rollouts(request, generator))


def _in_order(groups: Sequence[Sequence[Rollout]]) -> list[Rollout]:
    """Without what is measured in seconds."""
    flat = [
        replace(r, metrics={k: v for k, v in r.metrics.items() if not k.startswith("time/")})
        for group in groups
        for r in group
    ]
    return sorted(flat, key=lambda r: (r.group, r.sample))


@torch.no_grad()
def _full_logprobs(policy: Policy, rollout: Rollout) -> torch.Tensor:
    """Of the sampled tokens, at temperature 1, from one pass over the whole sequence."""
    ids = torch.tensor([[*rollout.prompt_ids, *rollout.token_ids]], device=policy.device)
    logits = policy.model(input_ids=ids).logits[0].double().cpu()
    at = torch.tensor(rollout.action_positions, dtype=torch.long) + len(rollout.prompt_ids)
    found: torch.Tensor = (
        logits[at - 1].log_softmax(-1).gather(1, ids.cpu()[0, at, None]).squeeze(1)
    )
    return found
