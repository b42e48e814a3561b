"""Rewards to advantages: three ways to scale what is left after the group's mean is taken off.

The reward of a rollout is ``sum_k w_k r_k`` over the providers that gave a value. Rollouts
without any value take no part in means and deviations and get advantage 0. All in float64.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

import torch

from grpo_core.errors import ConfigError
from grpo_core.types import AdvantageRequest, AdvantageResult
from grpo_losses.config import AdvantageConfig
from grpo_losses.groups import Groups, sample_std

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_core.protocols import BuildContext

STD_EPSILON = 1e-4
"""Added to the standard deviation, as in TRL."""


class CentredAdvantage(ABC):
    """``(reward - mean of its group) / scale``; a variant says what the scale is.

    A group of equal rewards gets exactly 0. Rounding leaves about 1e-17 after the mean is taken
    off rewards of 1.2, which the division by 1e-4 would turn into something that looks like
    signal, and such rollouts could not be left out of the update.
    """

    Config = AdvantageConfig
    name: ClassVar[str]
    min_group_size: ClassVar[int] = AdvantageConfig.min_group_size

    def __init__(
        self, config: AdvantageConfig | None = None, context: BuildContext | None = None
    ) -> None:
        del config, context  # There is nothing to choose; the signature is every component's.

    @abstractmethod
    def scale(self, rewards_B: Tensor, groups: Groups) -> Tensor | float:
        """What to divide by: a number, or one per rollout. ``rewards_B`` has NaN where no
        provider gave a value."""

    def __call__(self, request: AdvantageRequest) -> AdvantageResult:
        """Advantages of one step.

        Raises:
            ConfigError: every group has one rollout.
        """
        rewards_B = total_rewards(request)
        groups = Groups.of(request.group_B, rewards_B)
        if 0 < groups.largest < self.min_group_size:
            raise ConfigError(
                f"train.group_size is {groups.largest}, but advantage {self.name!r} compares the "
                "completions of one prompt with each other: every advantage would be 0 and "
                f"nothing would be learned; set train.group_size to {self.min_group_size} or more "
                "(8 is usual)"
            )
        centred_B = rewards_B - groups.mean_B
        silent_B = rewards_B.isnan() | groups.constant_B
        advantages_B = centred_B / self.scale(rewards_B, groups)
        return AdvantageResult(advantages_B=advantages_B.masked_fill(silent_B, 0.0))


class GroupAdvantage(CentredAdvantage):
    """``(r - mean) / (std + 1e-4)`` within the group, sample standard deviation (GRPO, arXiv
    2402.03300)."""

    name = "group"

    def scale(self, rewards_B: Tensor, groups: Groups) -> Tensor | float:
        return groups.std_B + STD_EPSILON


class BatchAdvantage(CentredAdvantage):
    """``(r - mean of the group) / (std + 1e-4)`` with the sample standard deviation over all
    rewards of the step, so that easy and hard prompts keep their weight (arXiv 2508.08221)."""

    name = "batch"

    def scale(self, rewards_B: Tensor, groups: Groups) -> Tensor | float:
        return sample_std(rewards_B[~rewards_B.isnan()]) + STD_EPSILON


class UnscaledAdvantage(CentredAdvantage):
    """``r - mean`` within the group (Dr. GRPO, arXiv 2503.20783)."""

    name = "none"

    def scale(self, rewards_B: Tensor, groups: Groups) -> Tensor | float:
        return 1.0


def total_rewards(request: AdvantageRequest) -> Tensor:
    """``sum_k w_k r_k`` over the values that exist; NaN where there is none.

    A provider of weight 0 only watches: its value does not make a rollout that no other provider
    could score look like one that was scored 0.
    """
    rewards_F_B = request.rewards_F_B.to(torch.float64)
    weights_F_1 = request.weights_F.to(torch.float64)[:, None]
    present_F_B = ~rewards_F_B.isnan() & (weights_F_1 != 0)
    weighted_F_B = (weights_F_1 * rewards_F_B).masked_fill(~present_F_B, 0.0)
    # In the same order for every rollout: a vectorised sum may add other columns in another
    # order, and equal rewards would differ in their last digit.
    total_B = sum(
        weighted_F_B.unbind(), start=torch.zeros_like(request.group_B, dtype=torch.float64)
    )
    return total_B.masked_fill(~present_F_B.any(0), torch.nan)
