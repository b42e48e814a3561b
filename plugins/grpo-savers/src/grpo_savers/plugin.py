"""Registration; imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpo_core import hookimpl

if TYPE_CHECKING:
    from grpo_core.plugins.registrar import Register


@hookimpl
def grpo_register_savers(register: Register) -> None:
    register(
        "safetensors",
        "grpo_savers.final_model:SafetensorsSaver",
        config="grpo_savers.config:SafetensorsConfig",
        summary="The final model (or adapter) with tokenizer and model card, in final/.",
    )
    register(
        "rollouts",
        "grpo_savers.rollouts:RolloutsSaver",
        config="grpo_savers.config:RolloutsConfig",
        summary="Every rollout with tokens, log-probs, rewards and advantage, in rollouts/.",
    )
    register(
        "hub",
        "grpo_savers.hub:HubSaver",
        config="grpo_savers.config:HubConfig",
        summary="What the other savers wrote, on the Hugging Face Hub; in the background.",
    )
