"""The terms that losses are made of, each written once.

All are per action token, of shape ``(N,)``, and to be minimised unless said otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from grpo_core.numerics import bounded, kl_k3

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Surrogate", "clipped_surrogate", "kl_k3"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Surrogate:
    """A policy term, and where the clip took effect."""

    loss_N: Tensor
    clipped_low_N: Tensor
    """bool: the ratio fell below ``1 - clip_low`` on a token to discourage; no gradient."""
    clipped_high_N: Tensor
    """bool: the ratio rose above ``1 + clip_high`` on a token to encourage; no gradient."""


def clipped_surrogate(
    log_ratio_N: Tensor, advantages_N: Tensor, *, clip_low: float, clip_high: float
) -> Surrogate:
    """PPO's pessimistic objective (arXiv 1707.06347), with a bound for each side (DAPO, arXiv
    2503.14476): ``-min(ratio * A, clamp(ratio, 1 - clip_low, 1 + clip_high) * A)``.

    Args:
        log_ratio_N: ``logprobs - old_logprobs``.
    """
    ratio_N = bounded(log_ratio_N).exp()
    clamped_N = ratio_N.clamp(1 - clip_low, 1 + clip_high)
    return Surrogate(
        loss_N=-(ratio_N * advantages_N).minimum(clamped_N * advantages_N),
        clipped_low_N=(ratio_N < 1 - clip_low) & (advantages_N < 0),
        clipped_high_N=(ratio_N > 1 + clip_high) & (advantages_N > 0),
    )
