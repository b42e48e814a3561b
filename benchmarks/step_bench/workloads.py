"""What is measured: models, prompts, lengths. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """A Qwen3 with random weights and a tied head, or a bundled checkpoint."""

    hidden: int = 0
    layers: int = 0
    heads: int = 0
    kv_heads: int = 0
    intermediate: int = 0
    vocabulary: int = 0
    head_dim: int = 64
    bundled: str | None = None
    """Name of a checkpoint of ``grpo_core.demo``, whose sizes are read from its files."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """One optimizer step: ``prompts`` groups of ``group_size`` completions."""

    name: str
    summary: str
    model: ModelShape
    prompts: int
    group_size: int
    prompt_tokens: tuple[int, int]
    """Least and most; drawn uniformly. The bundled checkpoint's prompts have their own length."""
    completion_tokens: tuple[int, int]
    """Least and most, end token included; drawn uniformly, and forced on both sides."""
    trl_rows: int
    """TRL's ``per_device_train_batch_size``; the rest is gradient accumulation."""
    device: Literal["cpu", "cuda"] = "cpu"

    def as_data(self) -> dict[str, Any]:
        """For JSON; ``workload_from`` reads it back."""
        return asdict(self)


def workload_from(data: dict[str, Any]) -> Workload:
    """The inverse of ``Workload.as_data``."""
    return Workload(
        **{
            **data,
            "model": ModelShape(**data["model"]),
            "prompt_tokens": tuple(data["prompt_tokens"]),
            "completion_tokens": tuple(data["completion_tokens"]),
        }
    )


SMALL = ModelShape(hidden=512, layers=4, heads=8, kv_heads=4, intermediate=1536, vocabulary=32_768)
WIDE_HEAD = ModelShape(
    hidden=256, layers=4, heads=4, kv_heads=2, intermediate=768, vocabulary=151_936
)

WORKLOADS = {
    w.name: w
    for w in (
        Workload(
            name="demo",
            summary="the bundled checkpoint, 0.8 M parameters, vocabulary 288",
            model=ModelShape(bundled="plain"),
            prompts=16,
            group_size=8,
            prompt_tokens=(22, 22),
            completion_tokens=(26, 32),
            trl_rows=128,
        ),
        Workload(
            name="w2s",
            summary="29 M parameters, vocabulary 32 k",
            model=SMALL,
            prompts=2,
            group_size=8,
            prompt_tokens=(128, 256),
            completion_tokens=(64, 128),
            trl_rows=8,
        ),
        Workload(
            name="w2v",
            summary="42 M parameters, vocabulary 152 k",
            model=WIDE_HEAD,
            prompts=2,
            group_size=8,
            prompt_tokens=(128, 256),
            completion_tokens=(64, 128),
            trl_rows=8,
        ),
        Workload(
            name="long",
            summary="17 M parameters, vocabulary 8 k, long prompts",
            model=replace(SMALL, vocabulary=8_192),
            prompts=2,
            group_size=16,
            prompt_tokens=(512, 1024),
            completion_tokens=(64, 128),
            trl_rows=8,
        ),
        Workload(
            name="gpu-0.5b",
            summary="0.5 B parameters (Qwen2.5-0.5B's sizes), vocabulary 152 k",
            model=ModelShape(
                hidden=896,
                layers=24,
                heads=14,
                kv_heads=2,
                intermediate=4864,
                vocabulary=151_936,
            ),
            prompts=8,
            group_size=16,
            prompt_tokens=(768, 1024),
            completion_tokens=(256, 512),
            trl_rows=16,
            device="cuda",
        ),
        Workload(
            name="gpu-1.5b",
            summary="1.5 B parameters (Qwen2.5-1.5B's sizes), vocabulary 152 k",
            model=ModelShape(
                hidden=1536,
                layers=28,
                heads=12,
                kv_heads=2,
                intermediate=8960,
                vocabulary=151_936,
                head_dim=128,
            ),
            prompts=8,
            group_size=16,
            prompt_tokens=(768, 1024),
            completion_tokens=(256, 512),
            trl_rows=16,
            device="cuda",
        ),
    )
}

_BASE = Workload(
    name="series",
    summary="6 M parameters, vocabulary 8 k; one size varied",
    model=ModelShape(hidden=256, layers=4, heads=4, kv_heads=2, intermediate=768, vocabulary=8_192),
    prompts=2,
    group_size=8,
    prompt_tokens=(128, 128),
    completion_tokens=(32, 64),
    trl_rows=8,
)

SERIES: dict[str, dict[int, Workload]] = {
    "group_size": {
        n: replace(_BASE, name=f"group_size={n}", group_size=n, trl_rows=min(n, 8))
        for n in (2, 4, 8, 16, 32)
    },
    "prompt_tokens": {
        n: replace(_BASE, name=f"prompt_tokens={n}", prompt_tokens=(n, n))
        for n in (16, 64, 256, 1024)
    },
    "completion_tokens": {
        n: replace(_BASE, name=f"completion_tokens={n}", completion_tokens=(n // 2, n))
        for n in (16, 64, 256)
    },
    "vocabulary": {
        n: replace(_BASE, name=f"vocabulary={n}", model=replace(_BASE.model, vocabulary=n))
        for n in (512, 8_192, 32_768, 151_936)
    },
}
"""What is varied -> size -> workload."""
