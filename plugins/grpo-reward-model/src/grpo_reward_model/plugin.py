"""Registration; imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpo_core import hookimpl

if TYPE_CHECKING:
    from grpo_core.plugins.registrar import Register


@hookimpl
def grpo_register_rewards(register: Register) -> None:
    register(
        "reward-model",
        "grpo_reward_model.local:RewardModel",
        config="grpo_reward_model.config:RewardModelConfig",
        summary="The score of a sequence classification model in this process.",
    )
    register(
        "reward-model-server",
        "grpo_reward_model.server:RewardModelServer",
        config="grpo_reward_model.config:RewardModelServerConfig",
        summary="The score of a reward model behind vLLM or text-embeddings-inference.",
    )
