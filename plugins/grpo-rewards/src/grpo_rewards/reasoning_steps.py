"""The reward of reasoning that is written in steps."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from grpo_core.types import RewardOutcome, Value
from grpo_rewards.config import ReasoningStepsConfig
from grpo_rewards.per_rollout import PerRollout

if TYPE_CHECKING:
    from grpo_core.protocols import BuildContext
    from grpo_core.types import Rollout


class ReasoningSteps(PerRollout):
    """``min(1, marks / enough)``, where marks are ``Step 1:``, a numbered line, a bullet on a line
    after the first, or ``First,`` ``Second,`` ``Next,`` ``Finally,`` (open-r1's
    ``reasoning_steps``).

    It rewards the look of reasoning and is easily satisfied without any; give it a small weight.
    """

    Config = ReasoningStepsConfig
    name = "reasoning-steps"

    def __init__(
        self, config: ReasoningStepsConfig | None = None, context: BuildContext | None = None
    ) -> None:
        config = config or ReasoningStepsConfig()
        self._pattern = re.compile(config.pattern, re.MULTILINE)
        self._enough = config.enough

    def outcome(self, rollout: Rollout) -> RewardOutcome:
        marks = sum(1 for _ in self._pattern.finditer(rollout.text))
        return Value(value=min(1.0, marks / self._enough))
