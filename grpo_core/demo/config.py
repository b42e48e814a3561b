"""The configuration of the bundled `arithmetic` task."""

from typing import Self

from pydantic import Field, model_validator

from grpo_core.demo.chain import Split, capacity
from grpo_core.settings import Settings


class ArithmeticConfig(Settings):
    """Chained single-digit arithmetic modulo 10, generated procedurally."""

    operations: int = Field(
        default=4,
        ge=1,
        le=12,
        description="Operations per chain. The bundled checkpoints have seen chains of 4 only.",
    )
    train_size: int = Field(
        default=10_000,
        ge=1,
        description="How many training prompts, all different. A run that needs more repeats them.",
    )
    eval_size: int = Field(
        default=256,
        ge=1,
        description="How many held-out prompts, all different. An accuracy of 0.5 measured on 256 "
        "has a standard error of 0.03.",
    )
    seed: int = Field(
        default=0,
        ge=0,
        description="Which chains are drawn from each split, and in what order. It does not move "
        "a chain from one split to the other.",
    )

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        sizes: tuple[tuple[str, int, Split], ...] = (
            ("train_size", self.train_size, "train"),
            ("eval_size", self.eval_size, "eval"),
        )
        for field, size, split in sizes:
            available = capacity(split, self.operations)
            if size > available:
                raise ValueError(
                    f"{field}={size}, but only {available} different chains of "
                    f"operations={self.operations} exist in that split; lower {field} or raise "
                    "operations"
                )
        return self
