"""Environments in which the policy calls tools, or is answered."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpo_core.lazy import lazy_exports

__getattr__ = lazy_exports(
    __name__,
    {
        "MultiTurn": "grpo_tools.environments",
        "MultiTurnConfig": "grpo_tools.config",
        "Tools": "grpo_tools.environments",
        "ToolsConfig": "grpo_tools.config",
    },
)

__all__ = ["MultiTurn", "MultiTurnConfig", "Tools", "ToolsConfig"]

if TYPE_CHECKING:
    from grpo_tools.config import MultiTurnConfig, ToolsConfig
    from grpo_tools.environments import MultiTurn, Tools
