"""Options of the savers. Nothing here imports torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from grpo_core.settings import Settings


class SafetensorsConfig(Settings):
    """How the final model is written."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="Of the saved weights; auto keeps what was trained, so that nothing is lost. "
        "bfloat16 halves a model trained in float32.",
    )
    max_shard_size: str = Field(
        default="5GB",
        pattern=r"^\d+(?:\.\d+)?\s*[KMGT]B$",
        description="Larger models are split into files of at most this size.",
    )


class RolloutsConfig(Settings):
    """Which rollouts are written."""

    every: int = Field(default=1, ge=1, description="Write the rollouts of every n-th step.")
