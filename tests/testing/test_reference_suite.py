"""The suite for references, on references that break one promise each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from grpo_core.testing import ReferenceSuite
from grpo_references import EmaConfig, EmaReference, FrozenReference


class WithGradient(FrozenReference):
    def logprobs(self, rollouts: Any) -> Any:
        found = super().logprobs(rollouts)
        return found and [x.requires_grad_() for x in found]


class OneShort(FrozenReference):
    def logprobs(self, rollouts: Any) -> Any:
        return (super().logprobs(rollouts) or [])[1:]


class NoneForNothing(FrozenReference):
    def logprobs(self, rollouts: Any) -> Any:
        return super().logprobs(rollouts) if rollouts else None


class ThePolicyItself(FrozenReference):
    def logprobs(self, rollouts: Any) -> Any:
        return self._policy.logprobs(rollouts)


class StartsElsewhere(FrozenReference):
    def start(self, policy: Any) -> None:
        super().start(policy)
        for tensor in self._weights.state_dict().values():
            tensor.mul_(0.9)


class LeavesItsWeights(FrozenReference):
    def logprobs(self, rollouts: Any) -> Any:
        if not rollouts:
            return []
        for name in self._weights._live:
            self._weights._exchange(name)
        return self._policy.logprobs(rollouts)


class ForgetsAfterAFailure(FrozenReference):
    def logprobs(self, rollouts: Any) -> Any:
        if not rollouts:
            return []
        for name in self._weights._live:
            self._weights._exchange(name)
        found = self._policy.logprobs(rollouts)
        for name in self._weights._live:
            self._weights._exchange(name)
        return found


class DrawsNumbers(FrozenReference):
    def start(self, policy: Any) -> None:
        torch.rand(1)
        super().start(policy)


class SwitchesTheMode(FrozenReference):
    def step_end(self, step: int) -> None:
        self._policy.model.train()


class SwitchesGradients(FrozenReference):
    def start(self, policy: Any) -> None:
        super().start(policy)
        policy.model.requires_grad_(False)


class ClaimsToBeThePolicy(FrozenReference):
    def step_end(self, step: int) -> None:
        self.equals_policy_version = self._policy.version


class MovesUndeclared(EmaReference):
    def __init__(self) -> None:
        super().__init__(EmaConfig(every=2))


class HasNoState(EmaReference):
    state_dict = None

    def __init__(self) -> None:
        super().__init__(EmaConfig(every=2))


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (WithGradient, "one_tensor_per_rollout_without_gradient"),
        (OneShort, "one_tensor_per_rollout_without_gradient"),
        (NoneForNothing, "no_rollouts_is_an_empty_list"),
        (StartsElsewhere, "at_the_start_it_is_the_policy"),
        (LeavesItsWeights, "the_policy_is_left_as_it_was"),
        (DrawsNumbers, "the_policy_is_left_as_it_was"),
        (SwitchesTheMode, "the_policy_is_left_as_it_was"),
        (SwitchesGradients, "the_policy_is_left_as_it_was"),
        (ForgetsAfterAFailure, "the_policy_is_left_as_it_was_by_a_failure_too"),
        (ThePolicyItself, "it_moves_as_declared"),
        (MovesUndeclared, "it_moves_as_declared"),
        (ClaimsToBeThePolicy, "it_equals_the_policy_version_that_it_names"),
        (HasNoState, "its_state_is_all_of_it"),
    ],
)
def test_a_broken_promise_is_found(broken: Callable[[], Any], check: str) -> None:
    class Suite(ReferenceSuite):
        def make(self) -> Any:
            return broken()

    with pytest.raises(AssertionError):
        getattr(Suite(), f"test_{check}")()
