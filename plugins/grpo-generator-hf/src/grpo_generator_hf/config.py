"""Options of the generator `hf`."""

from __future__ import annotations

from pydantic import Field

from grpo_core.settings import Settings


class HFConfig(Settings):
    """Bounds on memory while sampling. Neither changes what is sampled."""

    rows_per_batch: int = Field(
        128, ge=1, description="Most completions decoded together; bounds the logits in memory."
    )
    tokens_in_cache: int = Field(
        65536,
        ge=1,
        description="Most key-value positions held at once: completions decoded together times "
        "(longest prompt among them + max_tokens). A position of an 8 B model in bf16 is 0.14 MB.",
    )
