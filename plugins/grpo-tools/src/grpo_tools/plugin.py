"""Registration; imports nothing heavy."""

from __future__ import annotations

from grpo_core.hookspecs import hookimpl
from grpo_core.plugins.registrar import Register


@hookimpl
def grpo_register_environments(register: Register) -> None:
    register(
        "tools",
        "grpo_tools.environments:Tools",
        config="grpo_tools.config:ToolsConfig",
        summary="The policy calls functions, and goes on with what they return.",
    )
    register(
        "multi-turn",
        "grpo_tools.environments:MultiTurn",
        config="grpo_tools.config:MultiTurnConfig",
        summary="A class of yours per rollout: its methods are tools, it may answer and reward.",
    )
