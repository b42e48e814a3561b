"""The verifiers of reasoning-gym as a reward."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reasoning_gym.utils import extract_answer

from grpo_core.errors import DataError
from grpo_core.types import Failed, RewardOutcome, Value
from grpo_reasoning_gym.config import ReasoningGymRewardConfig
from grpo_reasoning_gym.entries import COLUMN, entry_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from grpo_core.protocols import BuildContext
    from grpo_core.types import Rollout, ScoreRequest


class ReasoningGymReward:
    """``score_answer`` of the prompt's dataset, from 0 to 1, for the completion's last
    ``<answer>...</answer>`` (``reasoning_gym.utils.extract_answer``).

    A completion without an answer is scored as reasoning-gym scores ``None``. A verifier that
    raises has failed on that rollout, which is not the same as a wrong answer.
    """

    Config = ReasoningGymRewardConfig
    name = "reasoning-gym"

    def __init__(
        self, config: ReasoningGymRewardConfig | None = None, context: BuildContext | None = None
    ) -> None:
        self._tag = (config or ReasoningGymRewardConfig()).answer_tag

    def score(self, request: ScoreRequest) -> Sequence[RewardOutcome]:
        """One outcome per rollout, in order.

        Raises:
            DataError: a prompt is not of the task ``reasoning-gym``.
        """
        return [self._outcome(rollout) for rollout in request.rollouts_B]

    def answer(self, text: str) -> str | None:
        """What is scored; ``None`` without the tag."""
        return text.strip() if self._tag is None else extract_answer(text, self._tag)

    def _outcome(self, rollout: Rollout) -> RewardOutcome:
        key = rollout.prompt.columns.get(COLUMN)
        if key is None:
            raise DataError(
                f"prompt {rollout.prompt.id!r} has no column {COLUMN!r}; this reward scores "
                "prompts of the task reasoning-gym only"
            )
        dataset, entry = entry_of(key)
        try:
            return Value(value=float(dataset.score_answer(self.answer(rollout.text), entry)))
        except Exception as error:
            reason = f"score_answer raised {type(error).__name__}: {error}"
            return Failed(kind="error", reason=reason)
