"""What every plugin promises."""

from grpo_core.testing import PluginSuite


class TestPlugin(PluginSuite):
    distribution = "grpo-observers"
    package = "grpo_observers"
    # The libraries are optional.
    options = {name: {"mode": "disabled"} for name in ("comet", "mlflow", "trackio", "wandb")}
