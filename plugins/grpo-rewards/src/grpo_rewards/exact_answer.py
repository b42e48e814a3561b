"""The reward of a right answer, compared as text."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from grpo_core.types import Abstained, RewardOutcome, Value
from grpo_rewards.config import ExactAnswerConfig
from grpo_rewards.per_rollout import PerRollout, column_of

if TYPE_CHECKING:
    from grpo_core.protocols import BuildContext
    from grpo_core.types import Rollout


class ExactAnswer(PerRollout):
    """1.0 if the completion's last ``<answer>...</answer>`` is the prompt's answer, else 0.0.

    Both sides are compared as text, character by character, after surrounding white space is
    taken off: ``5`` is not ``5.0`` and ``A`` is not ``a``. A number in the data is written as
    Python writes it. No answer in the completion is a wrong answer. An answer of ``None`` in
    the data means that nobody knows: the reward abstains.

    Raises:
        DataError: while scoring, where a prompt has no such column; names those that it has.
    """

    Config = ExactAnswerConfig
    name = "exact-answer"

    def __init__(
        self, config: ExactAnswerConfig | None = None, context: BuildContext | None = None
    ) -> None:
        config = config or ExactAnswerConfig()
        self._pattern = re.compile(config.pattern, re.DOTALL)
        self._column = config.column

    def outcome(self, rollout: Rollout) -> RewardOutcome:
        expected = column_of(rollout.prompt, self._column, self.name)
        if expected is None:
            return Abstained(reason=f"column {self._column!r} is null")
        return Value(value=float(self.extract(rollout.text) == str(expected).strip()))

    def answer(self, rollout: Rollout) -> str | None:
        """The answer that it gives, for majority votes."""
        return self.extract(rollout.text)

    def extract(self, text: str) -> str | None:
        """The answer that a completion gives; ``None`` when it gives none."""
        matches = self._pattern.findall(text)
        return matches[-1].strip() if matches else None
