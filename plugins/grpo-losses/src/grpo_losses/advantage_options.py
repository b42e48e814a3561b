"""What advantages can be told. Nothing here imports torch.

``min_group_size`` is the group size below which a config is refused.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from grpo_core.settings import Settings
from grpo_core.types import Need

Deviation = Literal["sample", "population"]


class AdvantageConfig(Settings):
    """Options of every advantage that is made from one reward per rollout."""

    min_group_size: ClassVar[int] = 2
    """With one completion the mean is the reward itself, and nothing is learned."""

    kl_coef: float = Field(
        default=0.0,
        ge=0,
        description="Weight of the KL to the reference that is taken off the reward (k1, summed "
        "over the rollout's tokens); above 0 a reference is needed.",
    )

    @property
    def needs(self) -> frozenset[Need]:
        """What the core must compute."""
        return frozenset({"ref_logprobs"}) if self.kl_coef > 0 else frozenset()


class ScaledConfig(AdvantageConfig):
    """Options of advantages that divide by a standard deviation."""

    std: Deviation = Field(
        default="sample", description="Divide by n - 1 (as TRL) or by n in the standard deviation."
    )


class LeaveOneOutConfig(AdvantageConfig):
    """Options of leave-one-out."""

    scale: bool = Field(
        default=False, description="Divide by the standard deviation of the step's advantages."
    )


class GdpoConfig(Settings):
    """Options of GDPO; a KL cannot be taken off its rewards, which are normalised one by one."""

    min_group_size: ClassVar[int] = 2

    std: Deviation = Field(
        default="sample", description="Divide by n - 1 (as TRL) or by n in the standard deviation."
    )


class GlobalConfig(ScaledConfig):
    """Options of REINFORCE++, which compares with the whole step."""

    min_group_size: ClassVar[int] = 1
