"""Options of losses and advantages. Nothing here imports torch.

Each loss carries ``default_advantage``, the advantage of its paper, taken by a config that names
none; each advantage ``min_group_size``, below which a config is refused.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from grpo_core.settings import Settings
from grpo_core.types import Aggregation

AGGREGATION = "token-mean, sequence-mean or constant: how tokens are averaged over a step."


class ClippedConfig(Settings):
    """Options that every loss with a clipped ratio has."""

    default_advantage: ClassVar[str] = "group"

    clip_low: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="Ratios below 1 - clip_low earn no further gain (PPO's 0.2).",
    )
    clip_high: float = Field(
        default=0.2,
        ge=0,
        description="Ratios above 1 + clip_high earn no further gain (PPO's 0.2).",
    )
    kl_coef: float = Field(
        default=0.0,
        ge=0,
        description="Weight of the KL to the reference (k3); above 0 a reference is needed. "
        "DeepSeekMath used 0.04; DAPO and Dr. GRPO found that 0 does as well.",
    )
    entropy_coef: float = Field(
        default=0.0, ge=0, description="Weight of the entropy bonus; 0 saves its gradient."
    )
    aggregation: Aggregation = Field(default="token-mean", description=AGGREGATION)


class GrpoConfig(ClippedConfig):
    """DeepSeekMath, arXiv 2402.03300."""

    aggregation: Aggregation = Field(default="sequence-mean", description=AGGREGATION)


class DapoConfig(ClippedConfig):
    """DAPO, arXiv 2503.14476."""

    clip_high: float = Field(
        default=0.28,
        ge=0,
        description="Ratios above 1 + clip_high earn no further gain (the paper's).",
    )


class DrGrpoConfig(ClippedConfig):
    """Dr. GRPO, arXiv 2503.20783: the baseline is kept, the standard deviation is not."""

    default_advantage: ClassVar[str] = "none"

    aggregation: Aggregation = Field(default="constant", description=AGGREGATION)


class AdvantageConfig(Settings):
    """Advantages that compare the completions of one prompt; they have no options."""

    min_group_size: ClassVar[int] = 2
    """With one completion the mean is the reward itself, and nothing is learned."""
