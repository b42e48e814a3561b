"""Parts for testing plugins and runs without chance: shipped, supported, real components."""

from typing import TYPE_CHECKING

from grpo_core.lazy import lazy_exports

__getattr__ = lazy_exports(
    __name__,
    {
        "PluginSuite": "grpo_core.testing.plugin_suite",
        "ScriptedConfig": "grpo_core.testing.config",
        "ScriptedGenerator": "grpo_core.testing.scripted",
    },
)

__all__ = ["PluginSuite", "ScriptedConfig", "ScriptedGenerator"]

if TYPE_CHECKING:
    from grpo_core.testing.config import ScriptedConfig
    from grpo_core.testing.plugin_suite import PluginSuite
    from grpo_core.testing.scripted import ScriptedGenerator
