"""Losses and advantages of the GRPO family."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpo_core.lazy import lazy_exports

__getattr__ = lazy_exports(
    __name__,
    {
        "BatchAdvantage": "grpo_losses.advantages",
        "Dapo": "grpo_losses.losses",
        "DapoConfig": "grpo_losses.config",
        "DrGrpo": "grpo_losses.losses",
        "DrGrpoConfig": "grpo_losses.config",
        "GroupAdvantage": "grpo_losses.advantages",
        "Grpo": "grpo_losses.losses",
        "GrpoConfig": "grpo_losses.config",
        "UnscaledAdvantage": "grpo_losses.advantages",
    },
)

__all__ = [
    "BatchAdvantage",
    "Dapo",
    "DapoConfig",
    "DrGrpo",
    "DrGrpoConfig",
    "GroupAdvantage",
    "Grpo",
    "GrpoConfig",
    "UnscaledAdvantage",
]

if TYPE_CHECKING:
    from grpo_losses.advantages import BatchAdvantage, GroupAdvantage, UnscaledAdvantage
    from grpo_losses.config import DapoConfig, DrGrpoConfig, GrpoConfig
    from grpo_losses.losses import Dapo, DrGrpo, Grpo
