"""The reward of a right answer, compared as text."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from grpo_core.errors import DataError
from grpo_core.types import Abstained, RewardOutcome, Value
from grpo_rewards.config import ExactAnswerConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from grpo_core.protocols import BuildContext
    from grpo_core.types import Prompt, Rollout, ScoreRequest


class ExactAnswer:
    """1.0 if the completion's last ``<answer>...</answer>`` is the prompt's answer, else 0.0.

    Both sides are compared as text, character by character, after surrounding white space is
    taken off: ``5`` is not ``5.0`` and ``A`` is not ``a``. A number in the data is written as
    Python writes it. No answer in the completion is a wrong answer. An answer of ``None`` in
    the data means that nobody knows: the reward abstains.
    """

    Config = ExactAnswerConfig
    name = "exact-answer"

    def __init__(
        self, config: ExactAnswerConfig | None = None, context: BuildContext | None = None
    ) -> None:
        config = config or ExactAnswerConfig()
        self._pattern = re.compile(config.pattern, re.DOTALL)
        self._column = config.column

    def score(self, request: ScoreRequest) -> Sequence[RewardOutcome]:
        """One outcome per rollout, in order.

        Raises:
            DataError: a prompt has no such column; names those that it has.
        """
        return [self._outcome(rollout) for rollout in request.rollouts_B]

    def answer(self, rollout: Rollout) -> str | None:
        """The answer that it gives, for majority votes."""
        return self.extract(rollout.text)

    def extract(self, text: str) -> str | None:
        """The answer that a completion gives; ``None`` when it gives none."""
        matches = self._pattern.findall(text)
        return matches[-1].strip() if matches else None

    def _outcome(self, rollout: Rollout) -> RewardOutcome:
        expected = self._expected(rollout.prompt)
        if expected is None:
            return Abstained(reason=f"column {self._column!r} is null")
        return Value(value=float(self.extract(rollout.text) == str(expected).strip()))

    def _expected(self, prompt: Prompt) -> object:
        if self._column not in prompt.columns:
            there = ", ".join(sorted(prompt.columns)) or "no columns besides the prompt"
            raise DataError(
                f"{self.name} compares with the column {self._column!r}, which prompt "
                f"{prompt.id!r} does not have; it has: {there}. Name the right one with the "
                "reward's option 'column'"
            )
        return prompt.columns[self._column]
