"""Policy objectives: one short function each, per action token and to be minimised.

At ratio 1 the gradient of every one is that of REINFORCE, ``-advantage``; they differ in what
becomes of it once the policy has moved.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from grpo_core.numerics import LOG_RATIO_MAX, bounded
from grpo_core.types import LossOutput

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_core.types import ActionTokens
    from grpo_losses import options

LEAST_WEIGHT = 1e-8
"""Where VESPO's authors stop counting how small a weight is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Material:
    """What an objective is made from, ``(N,)`` each."""

    tokens: ActionTokens
    log_ratio_N: Tensor
    """``logprobs - old_logprobs``."""
    ratio_N: Tensor
    """At the configured level."""
    keep_N: Tensor | None
    """bool: the top-entropy mask."""
    sampler_weight_N: Tensor | None
    """Detached; see ``grpo_losses.terms.sampler_weight``."""


def clip(x: Material, c: options.ClipConfig) -> LossOutput:
    """PPO's pessimistic objective (arXiv 1707.06347), a bound for each side (DAPO, arXiv
    2503.14476), a cap on the ratio itself (INTELLECT-2, arXiv 2505.07291)."""
    ratio_N, advantages_N = x.ratio_N, x.tokens.advantages_N
    capped_N = ratio_N if c.clip_max is None else ratio_N.clamp(max=c.clip_max)
    clipped_N = ratio_N.clamp(1 - c.clip_low, 1 + c.clip_high)
    return LossOutput(
        loss_N=-(capped_N * advantages_N).minimum(clipped_N * advantages_N),
        metrics=_clip_shares(x, ratio_N < 1 - c.clip_low, ratio_N > 1 + c.clip_high),
    )


def cispo(x: Material, c: options.CispoConfig) -> LossOutput:
    """REINFORCE weighted by the detached, capped ratio (MiniMax-M1, arXiv 2506.13585)."""
    weight_N = x.ratio_N.detach().clamp(max=c.cap)
    return LossOutput(loss_N=-weight_N * x.tokens.advantages_N * x.tokens.logprobs_N)


def sapo(x: Material, c: options.SapoConfig) -> LossOutput:
    """A sigmoid gate around ratio 1 (SAPO, arXiv 2511.20347)."""
    advantages_N = x.tokens.advantages_N
    t_N = (advantages_N > 0).to(advantages_N.dtype)
    t_N = t_N * c.temperature_pos + (1 - t_N) * c.temperature_neg
    return LossOutput(loss_N=-(4 / t_N) * (t_N * (x.ratio_N - 1)).sigmoid() * advantages_N)


def gmpo(x: Material, c: options.GmpoConfig) -> LossOutput:
    """The geometric mean of clipped ratios over the tokens that are kept (GMPO, arXiv
    2507.20673)."""
    d_N, encourage_N = x.log_ratio_N, x.tokens.advantages_N > 0
    clipped_N = d_N.clamp(max=c.clip_high).where(encourage_N, d_N.clamp(min=-c.clip_low))
    kept_N = d_N.new_ones(d_N.shape) if x.keep_N is None else x.keep_N.to(d_N.dtype)
    count_B = x.tokens.sum_per_rollout(kept_N).clamp(min=1)
    mean_B = x.tokens.sum_per_rollout(clipped_N * kept_N) / count_B
    return LossOutput(
        loss_N=-bounded(x.tokens.spread(mean_B)).exp() * x.tokens.advantages_N,
        metrics=_clip_shares(x, d_N < -c.clip_low, d_N > c.clip_high),
    )


def vespo(x: Material, c: options.VespoConfig) -> LossOutput:
    """REINFORCE weighted by ``w^k exp(lambda (1 - w))``, w the whole rollout's ratio to the
    sampler (VESPO, arXiv 2602.10693)."""
    tokens, floor = x.tokens, math.log(LEAST_WEIGHT)
    log_w_N = x.log_ratio_N.detach().clamp(-LOG_RATIO_MAX, LOG_RATIO_MAX)
    if x.sampler_weight_N is not None:
        log_w_N = log_w_N + x.sampler_weight_N.log().clamp(floor, LOG_RATIO_MAX)
    log_w_N = tokens.spread(tokens.sum_per_rollout(log_w_N).clamp(floor, LOG_RATIO_MAX))
    encourage_N = (tokens.advantages_N >= 0).to(log_w_N.dtype)
    k_N = encourage_N * c.k_pos + (1 - encourage_N) * c.k_neg
    lambda_N = encourage_N * c.lambda_pos + (1 - encourage_N) * c.lambda_neg
    weight_N = (lambda_N + k_N * log_w_N - lambda_N * log_w_N.exp()).exp()
    return LossOutput(loss_N=-weight_N * tokens.advantages_N * tokens.logprobs_N)


def reinforce(x: Material, c: options.ReinforceConfig) -> LossOutput:
    """The plain policy gradient (Williams 1992)."""
    return LossOutput(loss_N=-x.tokens.advantages_N * x.tokens.logprobs_N)


def _clip_shares(x: Material, low_N: Tensor, high_N: Tensor) -> dict[str, Tensor]:
    """The tokens that a clip stopped: they have no gradient."""
    advantages_N = x.tokens.advantages_N
    return {
        "ratio/clip_low": (low_N & (advantages_N < 0)).to(advantages_N.dtype),
        "ratio/clip_high": (high_N & (advantages_N > 0)).to(advantages_N.dtype),
    }


OBJECTIVES: Mapping[str, Callable[[Material, Any], LossOutput]] = {
    "clip": clip,
    "cispo": cispo,
    "sapo": sapo,
    "gmpo": gmpo,
    "vespo": vespo,
    "reinforce": reinforce,
}
WEIGHS_BY_SAMPLER_ITSELF = frozenset({"vespo"})
MASKS_BY_ENTROPY_ITSELF = frozenset({"gmpo"})
