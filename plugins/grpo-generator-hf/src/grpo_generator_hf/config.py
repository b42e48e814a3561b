"""Options of the generator `hf`."""

from __future__ import annotations

from pydantic import Field

from grpo_core.settings import Settings


class HFConfig(Settings):
    """Bounds on memory while sampling. None changes what is sampled, up to rounding."""

    rows_at_once: int = Field(
        128, ge=1, description="Most completions decoded together; bounds the logits in memory."
    )
    tokens_in_cache: int = Field(
        65536,
        ge=1,
        description="Most key-value positions held at once; groups wait until those before them "
        "have left enough room for all their max_tokens. A position of an 8 B model in bf16 is "
        "0.14 MB.",
    )
    device: str | None = Field(
        None,
        description="Sample with a copy of the weights on this device (cuda:1, cpu), so that "
        "train.schedule can be ahead; null samples with the policy's own weights.",
    )
    fused: bool = Field(
        True,
        description="Decode with a second copy of the weights, fused and laid out for few rows, "
        "where the architecture is known; it lives as long as a request. false saves its memory.",
    )
