"""Registration; imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpo_core import hookimpl

if TYPE_CHECKING:
    from grpo_core.plugins.registrar import Register


@hookimpl
def grpo_register_tasks(register: Register) -> None:
    register(
        "reasoning-gym",
        "grpo_reasoning_gym.task:ReasoningGym",
        config="grpo_reasoning_gym.config:ReasoningGymConfig",
        summary="Prompts of any reasoning-gym datasets, with their own verifiers as reward.",
    )


@hookimpl
def grpo_register_rewards(register: Register) -> None:
    register(
        "reasoning-gym",
        "grpo_reasoning_gym.reward:ReasoningGymReward",
        config="grpo_reasoning_gym.config:ReasoningGymRewardConfig",
        summary="The dataset's own score of the completion's <answer>, for that task's prompts.",
    )
