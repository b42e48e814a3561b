"""Reference policies: none, frozen copy, adapter off."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpo_core.lazy import lazy_exports

__getattr__ = lazy_exports(
    __name__,
    {
        "AdapterOffReference": "grpo_references.references",
        "FrozenReference": "grpo_references.references",
        "NoReference": "grpo_references.references",
    },
)

__all__ = ["AdapterOffReference", "FrozenReference", "NoReference"]

if TYPE_CHECKING:
    from grpo_references.references import AdapterOffReference, FrozenReference, NoReference
