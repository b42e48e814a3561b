"""The reward of a form: reasoning, then an answer, each in its tags."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from grpo_core.types import RewardOutcome, Value
from grpo_rewards.config import FORMS, ThinkFormatConfig
from grpo_rewards.per_rollout import PerRollout

if TYPE_CHECKING:
    from grpo_core.protocols import BuildContext
    from grpo_core.types import Rollout


class ThinkFormat(PerRollout):
    """1.0 for ``<think>...</think>`` followed by ``<answer>...</answer>`` and nothing else, or 0.0.

    Each of the four tags stands exactly once. White space may surround the completion and the two
    parts, nothing else may. The reasoning may be empty; the answer may not be blank. The option
    ``form`` asks for another form; the prompt is not looked at.
    """

    Config = ThinkFormatConfig
    name = "think-format"

    def __init__(
        self, config: ThinkFormatConfig | None = None, context: BuildContext | None = None
    ) -> None:
        config = config or ThinkFormatConfig()
        self._pattern = re.compile(config.pattern or FORMS[config.form], re.DOTALL)
        # TRL and open-r1 look at every character; white space around our form means nothing.
        self._strips = config.pattern is not None or config.form == "think-answer"

    def outcome(self, rollout: Rollout) -> RewardOutcome:
        return Value(value=float(self.matches(rollout.text)))

    def matches(self, text: str) -> bool:
        """Whether a completion has the form."""
        return self._pattern.fullmatch(text.strip() if self._strips else text) is not None
