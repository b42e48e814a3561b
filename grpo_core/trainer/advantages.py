"""Rewards of all ranks to the advantages of this one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from grpo_core.errors import PluginError
from grpo_core.trainer.observe import observe_totals
from grpo_core.types import AdvantageRequest, Rollout, ScoredRollouts

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_core.trainer.run import Run


def compute_advantages(run: Run, rollouts: Sequence[Rollout], scored: ScoredRollouts) -> Tensor:
    """Every rank computes the advantages of all rollouts and keeps its own: rewards are a few
    numbers per rollout, and some advantages need statistics over the whole step.

    Returns:
        float64, one advantage per rollout of this rank.

    Raises:
        PluginError: the advantage failed, or returned another number of them, or one that is not
            finite.
    """
    mine = [
        (r.group, r.action_count, values)
        for r, *values in zip(rollouts, *scored.values_F_B(), strict=True)
    ]
    everyone = run.policy.gather(mine)
    start = sum(run.policy.gather([len(mine)])[: run.policy.rank])
    position = {group: i for i, group in enumerate(sorted({group for group, _, _ in everyone}))}
    request = AdvantageRequest(
        rewards_F_B=torch.tensor([v for _, _, v in everyone], dtype=torch.float64).T,
        weights_F=torch.tensor(scored.weights_F, dtype=torch.float64),
        group_B=torch.tensor([position[group] for group, _, _ in everyone]),
        action_count_B=torch.tensor([count for _, count, _ in everyone]),
    )
    with run.attributed("advantage", run.advantage, "__call__"):
        result = run.advantage(request)
    finite = int(result.advantages_B.isfinite().sum())
    if result.advantages_B.shape != (len(everyone),) or finite != len(everyone):
        raise PluginError(
            f"{run.label('advantage')} returned advantages of shape "
            f"{tuple(result.advantages_B.shape)}, {finite} of them finite; {len(everyone)} finite "
            "ones are due"
        )
    if run.policy.is_main:
        observe_totals(run.metrics, request, result.advantages_B)
        for name, value in result.metrics.items():
            run.metrics.mean(name, value)
    return result.advantages_B[start : start + len(mine)]
