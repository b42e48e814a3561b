"""Numerics that the core and the losses share."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

LOG_RATIO_MAX = 20.0
"""Nats; the bound that VESPO (arXiv 2602.10693) puts on log-ratios."""


def bounded(log_ratio_N: Tensor) -> Tensor:
    """The log-ratio, small enough for ``exp`` and its gradient to stay finite.

    In float32 ``exp(89)`` is infinite. One such token, from a stale rollout or a mismatched
    sampler, makes the loss infinite, and 0 * inf makes the gradient of every weight NaN. Past
    ``exp(20) = 4.9e8`` the value stays there and the token has no gradient. There is no lower
    bound, because ``exp(-inf)`` is 0 with gradient 0.
    """
    return log_ratio_N.clamp(max=LOG_RATIO_MAX)


def kl_k3(sampled_N: Tensor, other_N: Tensor) -> Tensor:
    """KL(sampled || other) per token in nats, estimated from tokens drawn from the first:
    ``r - 1 - log r`` with ``r = other / sampled`` (k3 of http://joschu.net/blog/kl-approx.html).
    Never negative; unbiased when the tokens come from the first distribution.

    Args:
        sampled_N: log-probs under the distribution that the tokens come from.
        other_N: log-probs of the same tokens under the other one.
    """
    # Bounded outside of exp too: past the bound, -q alone would push away from the other.
    log_ratio_N = bounded(other_N - sampled_N)
    # expm1, because exp(q) - 1 loses every digit that matters when the two are close.
    return log_ratio_N.expm1() - log_ratio_N
