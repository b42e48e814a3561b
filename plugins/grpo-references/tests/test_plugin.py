"""What every plugin promises."""

from grpo_core.testing import PluginSuite


class TestPlugin(PluginSuite):
    distribution = "grpo-references"
    package = "grpo_references"
