"""A penalty for saying the same again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpo_core.types import RewardOutcome, Value
from grpo_rewards.config import RepetitionPenaltyConfig
from grpo_rewards.per_rollout import PerRollout

if TYPE_CHECKING:
    from grpo_core.protocols import BuildContext
    from grpo_core.types import Rollout


class RepetitionPenalty(PerRollout):
    """``(1 - different / all) * max_penalty`` over the n-grams of the token ids (arXiv 2502.03373,
    appendix C.2): 0.0 without a repetition, near ``max_penalty`` for a loop.

    Fewer than n tokens are no repetition: 0.0. Only what the policy sampled is looked at, and no
    n-gram spans what a tool wrote.
    """

    Config = RepetitionPenaltyConfig
    name = "repetition-penalty"

    def __init__(
        self, config: RepetitionPenaltyConfig | None = None, context: BuildContext | None = None
    ) -> None:
        config = config or RepetitionPenaltyConfig()
        self._size, self._penalty = config.ngram_size, config.max_penalty

    def outcome(self, rollout: Rollout) -> RewardOutcome:
        ngrams = [
            span.token_ids[start : start + self._size]
            for span in rollout.spans
            if span.sampled
            for start in range(len(span.token_ids) - self._size + 1)
        ]
        repeated = 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0
        # Without the test, a product with a negative penalty would be -0.0.
        return Value(value=repeated * self._penalty if repeated else 0.0)
