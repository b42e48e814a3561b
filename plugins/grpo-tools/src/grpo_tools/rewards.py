"""What environments say of their own rollouts, as a reward provider."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from grpo_core.types import Abstained, Failed, RewardOutcome, Value

if TYPE_CHECKING:
    from grpo_core.types import Rollout, ScoreRequest


class EnvironmentReward:
    """``reward()`` of the instance that a rollout took place in. It ran when the rollout ended;
    rollouts of other environments are abstained from."""

    def __init__(self, environment: str, label: str) -> None:
        self._environment = environment
        self.name = label

    def score(self, request: ScoreRequest) -> Sequence[RewardOutcome]:
        """One outcome per rollout, in order."""
        return [self._outcome(rollout) for rollout in request.rollouts_B]

    def _outcome(self, rollout: Rollout) -> RewardOutcome:
        if rollout.extra.get("environment") != self._environment:
            return Abstained(reason="a rollout of another environment")
        if "environment_failure" in rollout.extra:
            kind, reason = rollout.extra["environment_failure"]
            return Failed(kind=kind, reason=reason)
        value = rollout.extra["environment_reward"]
        return Abstained() if value is None else Value(value=value)
