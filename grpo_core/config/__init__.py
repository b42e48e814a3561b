"""Configs: YAML files and ``--set`` to a checked ``ResolvedConfig``. Imports no torch."""

from grpo_core.config.components import ResolvedComponent
from grpo_core.config.export import json_schema
from grpo_core.config.loading import load_config
from grpo_core.config.resolved import ResolvedConfig
from grpo_core.config.schema import Block, RewardBlock, RunConfig

__all__ = [
    "Block",
    "ResolvedComponent",
    "ResolvedConfig",
    "RewardBlock",
    "RunConfig",
    "json_schema",
    "load_config",
]
