"""Registration; imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpo_core import hookimpl

if TYPE_CHECKING:
    from grpo_core.plugins.registrar import Register


@hookimpl
def grpo_register_advantages(register: Register) -> None:
    register(
        "gae",
        "grpo_ppo.gae:Gae",
        config="grpo_ppo.config:GaeConfig",
        summary="Per token, from a value head, with a KL in the reward (arXiv 1506.02438).",
    )


@hookimpl
def grpo_register_losses(register: Register) -> None:
    register(
        "ppo",
        "grpo_ppo.loss:Ppo",
        config="grpo_ppo.config:PpoConfig",
        summary="PPO's clipped surrogate with a clipped value loss (arXiv 1707.06347).",
    )
