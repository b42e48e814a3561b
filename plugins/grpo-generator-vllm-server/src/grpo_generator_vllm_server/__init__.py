"""Sampling by vLLM servers, which may be started here or run elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpo_core.lazy import lazy_exports

__getattr__ = lazy_exports(
    __name__,
    {
        "LaunchSettings": "grpo_generator_vllm_server.config",
        "VLLMServerConfig": "grpo_generator_vllm_server.config",
        "VLLMServerGenerator": "grpo_generator_vllm_server.generator",
    },
)

__all__ = ["LaunchSettings", "VLLMServerConfig", "VLLMServerGenerator"]

if TYPE_CHECKING:
    from grpo_generator_vllm_server.config import LaunchSettings, VLLMServerConfig
    from grpo_generator_vllm_server.generator import VLLMServerGenerator
