"""What every plugin and every loss promises."""

from __future__ import annotations

from grpo_core.protocols import Loss
from grpo_core.testing import LossSuite, PluginSuite
from grpo_ppo import Ppo, PpoConfig


class TestPlugin(PluginSuite):
    distribution = "grpo-ppo"
    package = "grpo_ppo"


class TestPolicyLoss(LossSuite):
    """Without its value term, whose gradient is not meant to vanish with the advantage."""

    def make(self) -> Loss:
        return Ppo(PpoConfig(value_coef=0.0))
