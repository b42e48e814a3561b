"""Registration; imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpo_core import hookimpl

if TYPE_CHECKING:
    from grpo_core.plugins.registrar import Register


@hookimpl
def grpo_register_rewards(register: Register) -> None:
    register(
        "exact-answer",
        "grpo_rewards.exact_answer:ExactAnswer",
        config="grpo_rewards.config:ExactAnswerConfig",
        summary="1 if the last <answer> equals the prompt's answer column, else 0.",
    )
    register(
        "think-format",
        "grpo_rewards.think_format:ThinkFormat",
        config="grpo_rewards.config:ThinkFormatConfig",
        summary="1 if the completion is <think>...</think><answer>...</answer>, else 0.",
    )
