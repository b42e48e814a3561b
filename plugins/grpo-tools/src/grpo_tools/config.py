"""Options of the environments."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from grpo_core.settings import Settings

CALL_PATTERN = r"<tool_call>(.*?)(?:</tool_call>|\Z)"
"""Hermes' format, which Qwen2.5 and Qwen3 were trained on: ``<tool_call>{"name": ..., "arguments":
{...}}</tool_call>``. One that is not closed is a call too, as in vLLM's parser: half a call that
passed for an answer would never be reported to the model."""


def _has_one_group(pattern: str) -> str:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
    if groups != 1:
        raise ValueError(
            f"{pattern!r} has {groups} groups; exactly one (...) must mark the JSON of a call, "
            "further ones may be written (?:...)"
        )
    return pattern


class LoopConfig(Settings):
    """Bounds on a rollout, and how calls are written."""

    max_turns: int = Field(
        10, ge=1, description="Most turns of the policy in a rollout (10 as in verifiers' ToolEnv)."
    )
    max_result_tokens: int | None = Field(
        None, ge=1, description="Longer results of a tool are cut off; null keeps them whole."
    )
    call_timeout: float = Field(
        60.0, gt=0, description="Seconds for one call of a tool or of an environment's method."
    )
    calls_at_once: int = Field(
        32, ge=1, description="Most calls that run at a time; 1 for functions that are not "
        "thread-safe."
    )  # fmt: skip
    parser: Literal["auto", "response-template", "pattern"] = Field(
        "auto",
        description="How calls are found: by the tokenizer's response template (transformers), or "
        "by call_pattern; auto takes the first where the tokenizer has one.",
    )
    call_pattern: Annotated[str, AfterValidator(_has_one_group)] = Field(
        CALL_PATTERN,
        description="Regular expression with one group, the JSON of a call with its name and "
        "arguments; '.' matches line breaks too.",
    )
    chat_template: str | None = Field(
        None,
        description="A Jinja file in place of the tokenizer's template, or 'chatml': ChatML with "
        "Hermes' tool calls, for models trained on ChatML whose own template knows no tools.",
    )


class ToolsConfig(LoopConfig):
    """Which functions the policy may call."""

    tools: tuple[str, ...] = Field(
        (),
        description="Import paths, package.module:function or file.py:function; plain or async, "
        "with type hints and a docstring in Google's style.",
    )


class MultiTurnConfig(LoopConfig):
    """Which classes rollouts take place in."""

    environment_factory: str | dict[str, str] | None = Field(
        None,
        description="Import path of a class, or of any callable that makes an instance per "
        "rollout; several under names that the prompts' column tells apart.",
    )
    column: str = Field(
        "environment", description="Column with the name of a prompt's environment."
    )
    reward_weight: float = Field(
        1.0, description="Weight of what an environment's own reward() or get_reward() says."
    )
