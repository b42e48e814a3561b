"""Rollouts that cannot move the weights, which never reach the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_core.trainer.run import Run
    from grpo_core.types import Rollout


def masked_rows(run: Run, rollouts: Sequence[Rollout]) -> list[bool]:
    """Which of them the loss leaves out because they were cut off."""
    masks = bool(getattr(run.component("loss"), "masks_truncated", False))
    return [masks and rollout.truncated for rollout in rollouts]


def contributing(
    run: Run, masked_B: Sequence[bool], rollouts: Sequence[Rollout], advantages: Sequence[Tensor]
) -> list[bool]:
    """Which of them can move the weights; the share of tokens that cannot is a metric."""
    skips = bool(getattr(run.component("loss"), "skips_zero_advantage", False))
    found = [
        not masked and (not skips or bool(advantage.any()))
        for masked, advantage in zip(masked_B, advantages, strict=True)
    ]
    skipped = sum(r.action_count for r, used in zip(rollouts, found, strict=True) if not used)
    total = sum(r.action_count for r in rollouts)
    run.metrics.ratio("tokens/skipped_share", skipped, total)
    return found
