"""Registration; imports nothing heavy."""

from __future__ import annotations

from grpo_core.hookspecs import hookimpl
from grpo_core.plugins.registrar import Register


@hookimpl
def grpo_register_generators(register: Register) -> None:
    register(
        "hf",
        "grpo_generator_hf.generator:HFGenerator",
        config="grpo_generator_hf.config:HFConfig",
        summary="Samples in the training process with the policy's own transformers model.",
    )
