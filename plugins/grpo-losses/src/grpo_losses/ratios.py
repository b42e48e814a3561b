"""Ratio levels: over what the ratio between the policy now and before the update is taken."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpo_core.numerics import bounded

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_core.types import ActionTokens
    from grpo_losses.options import Ratio


def ratio(level: Ratio, tokens: ActionTokens, log_ratio_N: Tensor) -> Tensor:
    """The importance ratio of every token, of shape ``(N,)``.

    * ``token``: its own.
    * ``sequence``: the geometric mean over its rollout, through which every token of the rollout
      has a gradient (GSPO, arXiv 2507.18071).
    * ``sequence-token``: the same value with each token's own gradient (GSPO-token).
    * ``trajectory``: of the whole rollout, the product over its tokens.

    Args:
        log_ratio_N: ``logprobs - old_logprobs``.
    """
    if level == "sequence":
        log_ratio_N = tokens.spread(tokens.mean_per_rollout(log_ratio_N))
    elif level == "sequence-token":
        mean_N = tokens.spread(tokens.mean_per_rollout(log_ratio_N.detach()))
        log_ratio_N = log_ratio_N - log_ratio_N.detach() + mean_N
    elif level == "trajectory":
        log_ratio_N = tokens.spread(tokens.sum_per_rollout(log_ratio_N))
    return bounded(log_ratio_N).exp()
