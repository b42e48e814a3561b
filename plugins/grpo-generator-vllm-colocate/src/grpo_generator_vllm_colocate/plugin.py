"""Registration; imports nothing heavy."""

from __future__ import annotations

from grpo_core.hookspecs import hookimpl
from grpo_core.plugins.registrar import Register


@hookimpl
def grpo_register_generators(register: Register) -> None:
    register(
        "vllm-colocate",
        "grpo_generator_vllm_colocate.generator:VLLMColocateGenerator",
        config="grpo_generator_vllm_colocate.config:VLLMColocateConfig",
        summary="Samples by a vLLM engine in the training process, one per rank or per several.",
    )
