"""Layouts: how rollouts are laid out for the model's forward pass."""

from __future__ import annotations

from grpo_core.policy.layouts.base import Layout, ModelInputs
from grpo_core.policy.layouts.padded import PaddedLayout

__all__ = ["Layout", "ModelInputs", "PaddedLayout", "choose_layout"]


def choose_layout(name: str) -> Layout:
    """The layout of that name; ``auto`` is the best that is known to work for every model."""
    return {"auto": PaddedLayout, "padded": PaddedLayout}[name]()
