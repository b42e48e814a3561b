"""The reward of a form: reasoning, then an answer, each in its tags."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from grpo_core.types import RewardOutcome, Value
from grpo_rewards.config import ThinkFormatConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from grpo_core.protocols import BuildContext
    from grpo_core.types import ScoreRequest


class ThinkFormat:
    """1.0 for ``<think>...</think>`` followed by ``<answer>...</answer>`` and nothing else, or 0.0.

    Each of the four tags stands exactly once. White space may surround the completion and the two
    parts, nothing else may. The reasoning may be empty; the answer may not be blank.
    """

    Config = ThinkFormatConfig
    name = "think-format"

    def __init__(
        self, config: ThinkFormatConfig | None = None, context: BuildContext | None = None
    ) -> None:
        self._pattern = re.compile((config or ThinkFormatConfig()).pattern, re.DOTALL)

    def score(self, request: ScoreRequest) -> Sequence[RewardOutcome]:
        """One outcome per rollout, in order; the prompt is not looked at."""
        return [Value(value=float(self.matches(r.text))) for r in request.rollouts_B]

    def matches(self, text: str) -> bool:
        """Whether a completion has the form."""
        return self._pattern.fullmatch(text.strip()) is not None
