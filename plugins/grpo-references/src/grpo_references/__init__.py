"""Reference policies: none, adapter off, frozen, and those that follow the policy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpo_core.lazy import lazy_exports

__getattr__ = lazy_exports(
    __name__,
    {
        "AdapterOffReference": "grpo_references.references",
        "EmaConfig": "grpo_references.config",
        "EmaReference": "grpo_references.references",
        "FrozenReference": "grpo_references.references",
        "NoReference": "grpo_references.references",
        "PeriodicConfig": "grpo_references.config",
        "PeriodicReference": "grpo_references.references",
    },
)

__all__ = [
    "AdapterOffReference",
    "EmaConfig",
    "EmaReference",
    "FrozenReference",
    "NoReference",
    "PeriodicConfig",
    "PeriodicReference",
]

if TYPE_CHECKING:
    from grpo_references.config import EmaConfig, PeriodicConfig
    from grpo_references.references import (
        AdapterOffReference,
        EmaReference,
        FrozenReference,
        NoReference,
        PeriodicReference,
    )
