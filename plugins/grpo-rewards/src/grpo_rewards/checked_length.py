"""Rewards of length that ask first whether the answer is right."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from grpo_core.types import RewardOutcome, Value
from grpo_rewards.config import (
    CheckedAnswerConfig,
    CosineLengthConfig,
    ExactAnswerConfig,
    LengthConfig,
    MathAnswerConfig,
    NumberAnswerConfig,
)
from grpo_rewards.per_rollout import PerRollout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from grpo_core.protocols import BuildContext
    from grpo_core.types import Rollout, ScoreRequest


def answer_check(config: CheckedAnswerConfig) -> PerRollout:
    """The reward that tells right from wrong: 1.0 is right."""
    if config.check == "exact":
        from grpo_rewards.exact_answer import ExactAnswer

        return ExactAnswer(ExactAnswerConfig(column=config.column))
    if config.check == "number":
        from grpo_rewards.number_answer import NumberAnswer

        return NumberAnswer(NumberAnswerConfig(column=config.column))
    from grpo_rewards.math_answer import MathAccuracy

    return MathAccuracy(MathAnswerConfig(column=config.column))


class CosineLength(PerRollout):
    """A cosine from a short completion's reward to a long one's, one pair of ends for right and
    one for wrong answers (arXiv 2502.03373, appendix C.1).

    The length is the number of tokens that the policy sampled; beyond ``max_tokens`` the reward
    stays at the long end. What the check abstains from (an answer in the data that cannot be
    parsed), this reward abstains from too.

    Args:
        check: another reward that is 1.0 for a right completion, in place of ``config.check``.
    """

    Config = CosineLengthConfig
    name = "cosine-length"

    def __init__(
        self,
        config: CosineLengthConfig,
        context: BuildContext | None = None,
        check: PerRollout | None = None,
    ) -> None:
        self._config = config
        self._check = check or answer_check(config)

    def outcome(self, rollout: Rollout) -> RewardOutcome:
        right = self._check.outcome(rollout)
        if not isinstance(right, Value):
            return right
        c = self._config
        short, long = (
            (c.correct_short, c.correct_long)
            if right.value == 1.0
            else (c.wrong_short, c.wrong_long)
        )
        # The cosine is periodic: without the bound, completions beyond max_tokens would climb.
        progress = min(rollout.action_count / c.max_tokens, 1.0)
        return Value(value=long + 0.5 * (short - long) * (1.0 + math.cos(math.pi * progress)))


class Length:
    """Kimi 1.5's length reward (arXiv 2501.12599, section 2.3.3): in a group,
    ``0.5 - (tokens - min) / (max - min)`` for a right answer, at most 0 for a wrong one.

    It depends on the group: the shortest and the longest of the rollouts that are scored together
    are its scale. Tokens are those that the policy sampled. 0 for all if all are equally long,
    so for a group of one too. What the check abstains from, this reward abstains from too.

    Args:
        check: another reward that is 1.0 for a right completion, in place of ``config.check``.
    """

    Config = LengthConfig
    name = "length"

    def __init__(
        self,
        config: LengthConfig | None = None,
        context: BuildContext | None = None,
        check: PerRollout | None = None,
    ) -> None:
        self._check = check or answer_check(config or LengthConfig())

    def score(self, request: ScoreRequest) -> Sequence[RewardOutcome]:
        """One outcome per rollout, in order; groups must be whole."""
        lengths: dict[int, list[int]] = {}
        for rollout in request.rollouts_B:
            lengths.setdefault(rollout.group, []).append(rollout.action_count)
        return [self._outcome(r, lengths[r.group]) for r in request.rollouts_B]

    def _outcome(self, rollout: Rollout, group: list[int]) -> RewardOutcome:
        right = self._check.outcome(rollout)
        if not isinstance(right, Value):
            return right
        shortest, longest = min(group), max(group)
        if shortest == longest:
            return Value(value=0.0)
        scaled = 0.5 - (rollout.action_count - shortest) / (longest - shortest)
        return Value(value=scaled if right.value == 1.0 else min(0.0, scaled))
