"""The reward of a completion that matches a regular expression."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from grpo_core.types import RewardOutcome, Value
from grpo_rewards.config import RegexConfig
from grpo_rewards.per_rollout import PerRollout

if TYPE_CHECKING:
    from grpo_core.protocols import BuildContext
    from grpo_core.types import Rollout


class RegexMatch(PerRollout):
    """1.0 if the pattern is found in the completion (or matches all of it), else 0.0.

    The time that a search takes depends on the pattern: ``(a+)+b`` needs longer than any run on a
    line of ``a``. With a pattern that repeats what repeats, set
    ``execution: {isolation: process, timeout: 10}``.
    """

    Config = RegexConfig
    name = "regex"

    def __init__(self, config: RegexConfig, context: BuildContext | None = None) -> None:
        flags = re.DOTALL | (re.IGNORECASE if config.ignore_case else 0)
        pattern = re.compile(config.pattern, flags)
        self._match = pattern.fullmatch if config.whole else pattern.search

    def outcome(self, rollout: Rollout) -> RewardOutcome:
        return Value(value=float(self._match(rollout.text) is not None))
