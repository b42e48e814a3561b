"""Registration; imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpo_core import hookimpl

if TYPE_CHECKING:
    from grpo_core.plugins.registrar import Register


@hookimpl
def grpo_register_losses(register: Register) -> None:
    register(
        "grpo",
        "grpo_losses.losses:Grpo",
        config="grpo_losses.config:GrpoConfig",
        summary="Clipped ratio, every rollout counts alike (arXiv 2402.03300).",
    )
    register(
        "dapo",
        "grpo_losses.losses:Dapo",
        config="grpo_losses.config:DapoConfig",
        summary="Clip higher, every token counts alike (arXiv 2503.14476).",
    )
    register(
        "dr-grpo",
        "grpo_losses.losses:DrGrpo",
        config="grpo_losses.config:DrGrpoConfig",
        summary="GRPO without length and std normalisation (arXiv 2503.20783).",
    )


@hookimpl
def grpo_register_advantages(register: Register) -> None:
    register(
        "group",
        "grpo_losses.advantages:GroupAdvantage",
        config="grpo_losses.config:AdvantageConfig",
        summary="Reward minus its group's mean, over its group's standard deviation.",
    )
    register(
        "batch",
        "grpo_losses.advantages:BatchAdvantage",
        config="grpo_losses.config:AdvantageConfig",
        summary="Reward minus its group's mean, over the step's standard deviation.",
    )
    register(
        "none",
        "grpo_losses.advantages:UnscaledAdvantage",
        config="grpo_losses.config:AdvantageConfig",
        summary="Reward minus its group's mean, not scaled (arXiv 2503.20783).",
    )
