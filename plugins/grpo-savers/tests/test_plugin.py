"""What every plugin promises."""

from grpo_core.testing import PluginSuite


class TestPlugin(PluginSuite):
    distribution = "grpo-savers"
    package = "grpo_savers"
    options = {"hub": {"repo": "me/model"}}
