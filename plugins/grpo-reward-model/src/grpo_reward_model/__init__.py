"""Reward models: sequence classification in this process, or behind a server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpo_core.lazy import lazy_exports

__getattr__ = lazy_exports(
    __name__,
    {
        "RewardModel": "grpo_reward_model.local",
        "RewardModelConfig": "grpo_reward_model.config",
        "RewardModelServer": "grpo_reward_model.server",
        "RewardModelServerConfig": "grpo_reward_model.config",
    },
)

__all__ = ["RewardModel", "RewardModelConfig", "RewardModelServer", "RewardModelServerConfig"]

if TYPE_CHECKING:
    from grpo_reward_model.config import RewardModelConfig, RewardModelServerConfig
    from grpo_reward_model.local import RewardModel
    from grpo_reward_model.server import RewardModelServer
