"""Parts for testing plugins and runs without chance: shipped, supported, real components."""

from grpo_core.testing.config import ScriptedConfig
from grpo_core.testing.scripted import ScriptedGenerator

__all__ = ["ScriptedConfig", "ScriptedGenerator"]
