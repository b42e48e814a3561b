"""Registration; imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpo_core import hookimpl

if TYPE_CHECKING:
    from grpo_core.plugins.registrar import Register


@hookimpl
def grpo_register_tasks(register: Register) -> None:
    register(
        "verifiers",
        "grpo_verifiers.task:VerifiersTask",
        config="grpo_verifiers.config:VerifiersConfig",
        summary="An installed taskset of verifiers: its tasks as prompts, its rewards as reward.",
    )


@hookimpl
def grpo_register_rewards(register: Register) -> None:
    register(
        "verifiers",
        "grpo_verifiers.reward:VerifiersReward",
        config="grpo_verifiers.config:VerifiersRewardConfig",
        summary="The taskset's own rewards, weighted and summed, for that task's prompts.",
    )
