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
        summary="The policy as it was at the start; of a LoRA policy only the adapter is copied.",
    )
    register(
        "adapter-off",
        "grpo_references.references:AdapterOffReference",
        summary="The base model under the LoRA adapter; nothing is copied.",
    )
    register(
        "ema",
        "grpo_references.references:EmaReference",
        config="grpo_references.config:EmaConfig",
        summary="Follows the policy by a moving average (TR-DPO, arXiv 2404.09656).",
    )
    register(
        "periodic",
        "grpo_references.references:PeriodicReference",
        config="grpo_references.config:PeriodicConfig",
        summary="Becomes the policy every so many steps (TR-DPO, arXiv 2404.09656).",
    )
