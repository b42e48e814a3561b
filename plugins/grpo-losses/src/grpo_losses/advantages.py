"""Rewards to advantages: what each reward is compared with, and what is left is divided by.

Rollouts without any value take no part in means and deviations and get advantage 0. A group of
equal rewards gets exactly 0: rounding leaves about 1e-17 after the mean is taken off rewards of
1.2, which the division by 1e-4 would turn into something that looks like signal, and such
rollouts could not be left out of the update. All in float64.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

import torch

from grpo_core.errors import ConfigError
from grpo_core.types import AdvantageRequest, AdvantageResult
from grpo_losses.advantage_options import (
    AdvantageConfig,
    GdpoConfig,
    LeaveOneOutConfig,
    ScaledConfig,
)
from grpo_losses.groups import Groups, std
from grpo_losses.rewards import in_order, penalised, weighed

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_core.protocols import BuildContext
    from grpo_core.types import Need

STD_EPSILON = 1e-4
"""Added to every standard deviation, as in TRL."""


class CentredAdvantage(ABC):
    """``(reward - mean of its group) / scale``; a variant says what the scale is."""

    Config: ClassVar[type[AdvantageConfig]] = AdvantageConfig
    name: ClassVar[str]
    min_group_size: ClassVar[int] = AdvantageConfig.min_group_size

    def __init__(
        self, config: AdvantageConfig | None = None, context: BuildContext | None = None
    ) -> None:
        del context
        self.config = self.Config() if config is None else config
        self.needs: frozenset[Need] = self.config.needs

    @abstractmethod
    def scale(self, rewards_B: Tensor, groups: Groups) -> Tensor | float:
        """What to divide by: a number, or one per rollout. ``rewards_B`` has NaN where no
        provider gave a value."""

    def __call__(self, request: AdvantageRequest) -> AdvantageResult:
        """Advantages of one step.

        Raises:
            ConfigError: every group has one rollout, or there is no reference for the KL.
        """
        rewards_B = penalised(request, self.config.kl_coef)
        groups = Groups.of(request.group_B, rewards_B)
        require_groups(self.name, self.min_group_size, groups)
        centred_B = rewards_B - groups.mean_B
        silent_B = rewards_B.isnan() | groups.constant_B
        advantages_B = centred_B / self.scale(rewards_B, groups)
        return AdvantageResult(advantages_B=advantages_B.masked_fill(silent_B, 0.0))


class _Scaled(CentredAdvantage):
    Config = ScaledConfig
    config: ScaledConfig


class GroupAdvantage(_Scaled):
    """``(r - mean) / (std + 1e-4)`` within the group (GRPO, arXiv 2402.03300)."""

    name = "group"

    def scale(self, rewards_B: Tensor, groups: Groups) -> Tensor | float:
        return groups.std_B(self.config.std) + STD_EPSILON


class BatchAdvantage(_Scaled):
    """``(r - mean of the group) / (std + 1e-4)`` with the standard deviation over all rewards of
    the step, so that easy and hard prompts keep their weight (arXiv 2508.08221)."""

    name = "batch"

    def scale(self, rewards_B: Tensor, groups: Groups) -> Tensor | float:
        return std(rewards_B, self.config.std) + STD_EPSILON


class UnscaledAdvantage(CentredAdvantage):
    """``r - mean`` within the group (Dr. GRPO, arXiv 2503.20783)."""

    name = "none"

    def scale(self, rewards_B: Tensor, groups: Groups) -> Tensor | float:
        return 1.0


class RlooAdvantage(CentredAdvantage):
    """``r - mean of the others of the group`` (RLOO, arXiv 2402.14740), which is ``r - mean``
    times ``n / (n - 1)``: a baseline that does not depend on the rollout itself."""

    Config = LeaveOneOutConfig
    config: LeaveOneOutConfig
    name = "rloo"

    def scale(self, rewards_B: Tensor, groups: Groups) -> Tensor | float:
        share_B = (groups.count_B - 1) / groups.count_B
        if not self.config.scale:
            return share_B
        silent_B = rewards_B.isnan() | (groups.count_B < 2)
        advantages_B = ((rewards_B - groups.mean_B) / share_B).masked_fill(silent_B, torch.nan)
        return share_B * (std(advantages_B, "sample") + STD_EPSILON)


class GdpoAdvantage:
    """Each provider's rewards normalised within the group, then summed with their weights, then
    divided by the standard deviation over the step (GDPO, arXiv 2601.05242): a reward of small
    spread is not drowned by one of large spread."""

    name = "gdpo"
    min_group_size = GdpoConfig.min_group_size

    def __init__(
        self, config: GdpoConfig | None = None, context: BuildContext | None = None
    ) -> None:
        del context
        self.config = config or GdpoConfig()

    def __call__(self, request: AdvantageRequest) -> AdvantageResult:
        """Advantages of one step.

        Raises:
            ConfigError: every group has one rollout.
        """
        rewards_F_B, weights_F_1 = weighed(request)
        normalised = []
        for rewards_B in rewards_F_B:
            groups = Groups.of(request.group_B, rewards_B)
            require_groups(self.name, self.min_group_size, groups)
            scale_B = groups.std_B(self.config.std) + STD_EPSILON
            silent_B = rewards_B.isnan() | groups.constant_B
            normalised.append(((rewards_B - groups.mean_B) / scale_B).masked_fill(silent_B, 0.0))
        # Each column sums to 0 in every group, so the mean over the step is 0 already.
        total_B = in_order(weights_F_1 * torch.stack(normalised))
        missing_B = rewards_F_B.isnan().all(0)
        scale = std(total_B.masked_fill(missing_B, torch.nan), self.config.std) + STD_EPSILON
        return AdvantageResult(advantages_B=total_B / scale)


def require_groups(name: str, least: int, groups: Groups) -> None:
    """Raises ``ConfigError`` when no group has ``least`` rollouts."""
    if 0 < groups.largest < least:
        raise ConfigError(
            f"train.group_size is {groups.largest}, but advantage {name!r} compares the "
            "completions of one prompt with each other: every advantage would be 0 and "
            f"nothing would be learned; set train.group_size to {least} or more (8 is usual)"
        )
