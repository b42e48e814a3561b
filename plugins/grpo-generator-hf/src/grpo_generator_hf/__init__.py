"""Sampling in the training process with transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpo_core.lazy import lazy_exports

__getattr__ = lazy_exports(
    __name__,
    {"HFConfig": "grpo_generator_hf.config", "HFGenerator": "grpo_generator_hf.generator"},
)

__all__ = ["HFConfig", "HFGenerator"]

if TYPE_CHECKING:
    from grpo_generator_hf.config import HFConfig
    from grpo_generator_hf.generator import HFGenerator
