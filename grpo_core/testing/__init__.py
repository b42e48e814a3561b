"""Parts for testing plugins and runs without chance: shipped, supported, real components."""

from typing import TYPE_CHECKING

from grpo_core.lazy import lazy_exports

__getattr__ = lazy_exports(
    __name__,
    {
        "AdvantageSuite": "grpo_core.testing.advantage_suite",
        "EnvironmentSuite": "grpo_core.testing.environment_suite",
        "GeneratorSuite": "grpo_core.testing.generator_suite",
        "LossSuite": "grpo_core.testing.loss_suite",
        "PluginSuite": "grpo_core.testing.plugin_suite",
        "ReferenceSuite": "grpo_core.testing.reference_suite",
        "RewardSuite": "grpo_core.testing.reward_suite",
        "SaverSuite": "grpo_core.testing.saver_suite",
        "ScriptedConfig": "grpo_core.testing.config",
        "ScriptedGenerator": "grpo_core.testing.scripted",
    },
)

__all__ = [
    "AdvantageSuite",
    "EnvironmentSuite",
    "GeneratorSuite",
    "LossSuite",
    "PluginSuite",
    "ReferenceSuite",
    "RewardSuite",
    "SaverSuite",
    "ScriptedConfig",
    "ScriptedGenerator",
]

if TYPE_CHECKING:
    from grpo_core.testing.advantage_suite import AdvantageSuite
    from grpo_core.testing.config import ScriptedConfig
    from grpo_core.testing.environment_suite import EnvironmentSuite
    from grpo_core.testing.generator_suite import GeneratorSuite
    from grpo_core.testing.loss_suite import LossSuite
    from grpo_core.testing.plugin_suite import PluginSuite
    from grpo_core.testing.reference_suite import ReferenceSuite
    from grpo_core.testing.reward_suite import RewardSuite
    from grpo_core.testing.saver_suite import SaverSuite
    from grpo_core.testing.scripted import ScriptedGenerator
