"""Tasksets of the package verifiers as prompts and as their reward."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpo_core.lazy import lazy_exports

__getattr__ = lazy_exports(
    __name__,
    {
        "VerifiersConfig": "grpo_verifiers.config",
        "VerifiersReward": "grpo_verifiers.reward",
        "VerifiersRewardConfig": "grpo_verifiers.config",
        "VerifiersTask": "grpo_verifiers.task",
    },
)

__all__ = ["VerifiersConfig", "VerifiersReward", "VerifiersRewardConfig", "VerifiersTask"]

if TYPE_CHECKING:
    from grpo_verifiers.config import VerifiersConfig, VerifiersRewardConfig
    from grpo_verifiers.reward import VerifiersReward
    from grpo_verifiers.task import VerifiersTask
