"""Rewards whose outcome for a rollout depends on that rollout alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from grpo_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from grpo_core.types import Prompt, RewardOutcome, Rollout, ScoreRequest


class PerRollout(ABC):
    """Scores one rollout at a time, so that it makes no difference which are scored together."""

    name: ClassVar[str]
    per_rollout = True

    def score(self, request: ScoreRequest) -> Sequence[RewardOutcome]:
        """One outcome per rollout, in order."""
        return [self.outcome(rollout) for rollout in request.rollouts_B]

    @abstractmethod
    def outcome(self, rollout: Rollout) -> RewardOutcome:
        """What this reward says of one rollout."""


def column_of(prompt: Prompt, column: str, who: str) -> object:
    """What the data say about a prompt.

    Raises:
        DataError: the prompt has no such column; names those that it has.
    """
    if column not in prompt.columns:
        there = ", ".join(sorted(prompt.columns)) or "no columns besides the prompt"
        raise DataError(
            f"{who} reads the column {column!r}, which prompt {prompt.id!r} does not have; it "
            f"has: {there}. Name the right one with the reward's option 'column'"
        )
    return prompt.columns[column]
