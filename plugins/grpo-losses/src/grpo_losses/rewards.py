"""One reward per rollout, from what the providers said and the KL to the reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from grpo_core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from grpo_core.types import AdvantageRequest


def total_rewards(request: AdvantageRequest) -> Tensor:
    """``sum_k w_k r_k`` over the values that exist; NaN where there is none.

    A provider of weight 0 only watches: its value does not make a rollout that no other provider
    could score look like one that was scored 0.
    """
    rewards_F_B, weights_F_1 = weighed(request)
    present_F_B = ~rewards_F_B.isnan()
    weighted_F_B = (weights_F_1 * rewards_F_B).masked_fill(~present_F_B, 0.0)
    return in_order(weighted_F_B).masked_fill(~present_F_B.any(0), torch.nan)


def weighed(request: AdvantageRequest) -> tuple[Tensor, Tensor]:
    """Rewards, NaN where missing or only watched, and weights ``(F, 1)``; float64."""
    weights_F_1 = request.weights_F.to(torch.float64)[:, None]
    return request.rewards_F_B.to(torch.float64).masked_fill(weights_F_1 == 0, torch.nan), (
        weights_F_1
    )


def in_order(x_F_B: Tensor) -> Tensor:
    """The sum over providers, in the same order for every rollout.

    A vectorised sum may add other columns in another order, and equal rewards would differ in
    their last digit.
    """
    return sum(x_F_B.unbind(), start=x_F_B.new_zeros(x_F_B.shape[1]))


def log_ratios(request: AdvantageRequest) -> Sequence[Tensor]:
    """Per rollout and token, how much likelier it was to the sampler than to the reference (k1).

    Raises:
        ConfigError: there is no reference.
    """
    if request.ref_log_ratios is None:
        raise ConfigError(
            "advantage.kl_coef is above 0 but there are no reference log-probs; choose a reference "
            "(frozen, adapter-off) or set advantage.kl_coef to 0"
        )
    return request.ref_log_ratios


def penalised(request: AdvantageRequest, kl_coef: float) -> Tensor:
    """``total_rewards - kl_coef * KL`` with the KL summed over each rollout's tokens."""
    rewards_B = total_rewards(request)
    if not kl_coef:
        return rewards_B
    kl = [float(x.sum()) for x in log_ratios(request)]
    return rewards_B - kl_coef * rewards_B.new_tensor(kl)
