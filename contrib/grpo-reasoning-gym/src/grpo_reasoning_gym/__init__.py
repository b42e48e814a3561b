"""Any reasoning-gym dataset as prompts and as their verifier."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpo_core.lazy import lazy_exports

__getattr__ = lazy_exports(
    __name__,
    {
        "ReasoningGym": "grpo_reasoning_gym.task",
        "ReasoningGymConfig": "grpo_reasoning_gym.config",
        "ReasoningGymReward": "grpo_reasoning_gym.reward",
        "ReasoningGymRewardConfig": "grpo_reasoning_gym.config",
    },
)

__all__ = ["ReasoningGym", "ReasoningGymConfig", "ReasoningGymReward", "ReasoningGymRewardConfig"]

if TYPE_CHECKING:
    from grpo_reasoning_gym.config import ReasoningGymConfig, ReasoningGymRewardConfig
    from grpo_reasoning_gym.reward import ReasoningGymReward
    from grpo_reasoning_gym.task import ReasoningGym
