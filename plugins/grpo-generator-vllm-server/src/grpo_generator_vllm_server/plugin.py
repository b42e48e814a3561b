"""Registration; imports nothing heavy."""

from __future__ import annotations

from grpo_core.hookspecs import hookimpl
from grpo_core.plugins.registrar import Register


@hookimpl
def grpo_register_generators(register: Register) -> None:
    register(
        "vllm-server",
        "grpo_generator_vllm_server.generator:VLLMServerGenerator",
        config="grpo_generator_vllm_server.config:VLLMServerConfig",
        summary="Samples on vLLM servers over HTTP, and can start them.",
    )


@hookimpl
def grpo_register_commands(register: Register) -> None:
    register(
        "serve",
        "grpo_generator_vllm_server.command:serve",
        summary="Start vLLM servers that a run can sample from.",
    )
