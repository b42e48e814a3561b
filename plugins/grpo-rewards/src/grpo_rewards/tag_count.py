"""Partial credit for tags that stand exactly once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpo_core.types import RewardOutcome, Value
from grpo_rewards.config import TagCountConfig
from grpo_rewards.per_rollout import PerRollout

if TYPE_CHECKING:
    from grpo_core.protocols import BuildContext
    from grpo_core.types import Rollout


class TagCount(PerRollout):
    """The share of the tags that stand in the completion exactly once: 0, 0.25, 0.5, 0.75 or 1.0
    with the usual four (open-r1's ``tag_count``).

    With the default tags, line breaks belong to them: ``<think>`` on a line of its own counts,
    ``<think>2`` does not. Their order is not looked at.
    """

    Config = TagCountConfig
    name = "tag-count"

    def __init__(
        self, config: TagCountConfig | None = None, context: BuildContext | None = None
    ) -> None:
        self._tags = (config or TagCountConfig()).tags

    def outcome(self, rollout: Rollout) -> RewardOutcome:
        once = sum(rollout.text.count(tag) == 1 for tag in self._tags)
        return Value(value=once / len(self._tags))
