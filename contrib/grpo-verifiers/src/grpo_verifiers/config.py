"""Options of the task and of its reward."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from grpo_core.settings import Settings


class VerifiersConfig(Settings):
    """Which taskset, and how much of it."""

    taskset: str = Field(
        min_length=1, description="Its id: an installed package or module that exports a Taskset."
    )
    args: dict[str, Any] = Field(
        default_factory=dict, description="Fields of the taskset's config: {task: {...}}."
    )
    size: int | None = Field(
        None, ge=1, description="Training prompts; null is all but those held out."
    )
    eval_size: int = Field(0, ge=0, description="Held-out prompts: the tasks behind training's.")


class VerifiersRewardConfig(Settings):
    """Where the taskset's code runs."""

    runtime: Literal["none", "subprocess"] = Field(
        "none",
        description="What setup, finalize and rewards get as runtime. subprocess is verifiers' "
        "own: a folder on this machine, without isolation.",
    )
    timeout: float = Field(
        60.0, gt=0, description="Seconds for one rollout, where the task itself sets no timeout."
    )
