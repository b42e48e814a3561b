"""Registration; imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpo_core import hookimpl

if TYPE_CHECKING:
    from grpo_core.plugins.registrar import Register


@hookimpl
def grpo_register_rewards(register: Register) -> None:
    register(
        "code",
        "grpo_sandbox.reward:Code",
        config="grpo_sandbox.config:CodeConfig",
        summary="Runs the last code block against the prompt's tests, isolated.",
    )
