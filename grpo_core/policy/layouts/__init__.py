"""Layouts: how rollouts are laid out for the model's forward pass."""

from grpo_core.policy.layouts.base import Layout, ModelInputs
from grpo_core.policy.layouts.padded import PaddedLayout
from grpo_core.policy.layouts.tree import PackedLayout, PrefixTreeLayout

__all__ = ["Layout", "ModelInputs", "PackedLayout", "PaddedLayout", "PrefixTreeLayout"]
