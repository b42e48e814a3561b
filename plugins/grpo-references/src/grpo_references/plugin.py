"""Registration; imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpo_core import hookimpl

if TYPE_CHECKING:
    from grpo_core.plugins.registrar import Register


@hookimpl
def grpo_register_references(register: Register) -> None:
    register(
        "none",
        "grpo_references.references:NoReference",
        summary="No reference; for losses without a KL term.",
    )
    register(
        "frozen",
        "grpo_references.references:FrozenReference",
        summary="A second copy of the weights that the run started from.",
    )
    register(
        "adapter-off",
        "grpo_references.references:AdapterOffReference",
        summary="The base model under the LoRA adapter; no second copy.",
    )
