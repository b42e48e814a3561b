"""What every plugin promises, and what a config can know of advantages."""

import pytest

from grpo_core.plugins import Registry, config_model
from grpo_core.testing import PluginSuite


class TestPlugin(PluginSuite):
    distribution = "grpo-losses"
    package = "grpo_losses"


@pytest.mark.parametrize("name", ["batch", "group", "none"])
def test_a_config_can_refuse_groups_of_one_without_torch(name: str) -> None:
    model = config_model(Registry.installed().get("advantage", name))
    assert getattr(model, "min_group_size", None) == 2
