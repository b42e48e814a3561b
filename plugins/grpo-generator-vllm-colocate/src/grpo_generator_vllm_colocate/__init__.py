"""Sampling by a vLLM engine in the training process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpo_core.lazy import lazy_exports

__getattr__ = lazy_exports(
    __name__,
    {
        "VLLMColocateConfig": "grpo_generator_vllm_colocate.config",
        "VLLMColocateGenerator": "grpo_generator_vllm_colocate.generator",
    },
)

__all__ = ["VLLMColocateConfig", "VLLMColocateGenerator"]

if TYPE_CHECKING:
    from grpo_generator_vllm_colocate.config import VLLMColocateConfig
    from grpo_generator_vllm_colocate.generator import VLLMColocateGenerator
