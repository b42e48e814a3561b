"""What leaves a run: models as safetensors, rollouts as Parquet, both on the Hub if asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpo_core.lazy import lazy_exports

__getattr__ = lazy_exports(
    __name__,
    {
        "HubConfig": "grpo_savers.config",
        "HubSaver": "grpo_savers.hub",
        "RolloutsConfig": "grpo_savers.config",
        "RolloutsSaver": "grpo_savers.rollouts",
        "SafetensorsConfig": "grpo_savers.config",
        "SafetensorsSaver": "grpo_savers.final_model",
    },
)

__all__ = [
    "HubConfig",
    "HubSaver",
    "RolloutsConfig",
    "RolloutsSaver",
    "SafetensorsConfig",
    "SafetensorsSaver",
]

if TYPE_CHECKING:
    from grpo_savers.config import HubConfig, RolloutsConfig, SafetensorsConfig
    from grpo_savers.final_model import SafetensorsSaver
    from grpo_savers.hub import HubSaver
    from grpo_savers.rollouts import RolloutsSaver
