"""Statistics within groups of rollouts, ignoring NaN, without a loop over groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_losses.advantage_options import Deviation


@dataclass(frozen=True, kw_only=True, slots=True)
class Groups:
    """What each rollout's group looks like; float64 unless said otherwise.

    Example: rewards ``[1, 0, nan, 1]`` in groups ``[0, 0, 0, 1]`` have ``mean_B = [.5, .5, .5,
    1]`` and ``constant_B = [False, False, False, True]``.
    """

    largest: int
    """Rollouts in the largest group, those without a value included; 0 without rollouts."""
    count_B: Tensor
    """How many of the group have a value."""
    mean_B: Tensor
    """NaN where the group has no value."""
    square_B: Tensor
    """Sum of the squared distances from the mean."""
    constant_B: Tensor
    """bool: all values of the group are the same number."""

    @classmethod
    def of(cls, group_B: Tensor, x_B: Tensor) -> Groups:
        """``group_B`` counts from 0; ``x_B`` may hold NaN, which is left out."""
        groups = int(group_B.max()) + 1 if len(group_B) else 0
        size_P = group_B.bincount(minlength=groups)
        present_B = ~x_B.isnan()
        count_P = _sum(present_B.to(x_B.dtype), group_B, groups)
        mean_P = _sum(x_B.masked_fill(~present_B, 0.0), group_B, groups) / count_P
        # Two passes: the one-pass formula loses all digits when the spread is small.
        square_B = (x_B - mean_P[group_B]).square().masked_fill(~present_B, 0.0)
        high_P = _extreme(x_B.masked_fill(~present_B, -torch.inf), group_B, groups, "amax")
        low_P = _extreme(x_B.masked_fill(~present_B, torch.inf), group_B, groups, "amin")
        return cls(
            largest=int(size_P.max()) if groups else 0,
            count_B=count_P[group_B],
            mean_B=mean_P[group_B],
            square_B=_sum(square_B, group_B, groups)[group_B],
            constant_B=(high_P == low_P)[group_B],
        )

    def std_B(self, deviation: Deviation) -> Tensor:
        """Of each rollout's group; NaN where too few values are there to divide by."""
        # 0/0 for a single value: NaN, as it has no spread.
        return (self.square_B / (self.count_B - _lost(deviation)).clamp(min=0)).sqrt()


def std(x_B: Tensor, deviation: Deviation) -> float:
    """Over the values that exist; 0 for fewer than two."""
    x_B = x_B[~x_B.isnan()]
    return x_B.std(correction=_lost(deviation)).item() if len(x_B) > 1 else 0.0


def _lost(deviation: Deviation) -> int:
    """Bessel's correction."""
    return 1 if deviation == "sample" else 0


def _sum(x_B: Tensor, group_B: Tensor, groups: int) -> Tensor:
    return x_B.new_zeros(groups).index_add(0, group_B, x_B)


def _extreme(x_B: Tensor, group_B: Tensor, groups: int, reduce: str) -> Tensor:
    start = -torch.inf if reduce == "amax" else torch.inf
    return x_B.new_full((groups,), start).scatter_reduce(0, group_B, x_B, reduce)
