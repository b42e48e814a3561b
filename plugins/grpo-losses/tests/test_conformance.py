"""Every shipped loss, several compositions and every advantage keep the core's promises."""

from __future__ import annotations

import pytest

import grpo_losses
from grpo_core.protocols import Advantage, Loss
from grpo_core.testing import AdvantageSuite, LossSuite
from grpo_losses import PolicyLoss, options
from grpo_losses import config as presets

NAMES = sorted(n.removesuffix("Config") for n in vars(presets) if n.endswith("Config"))
COMPOSITIONS = [
    options.ClipConfig(ratio="trajectory", aggregation="constant", clip_max=4.0),
    options.CispoConfig(ratio="sequence", aggregation="sequence-mean"),
    options.SapoConfig(ratio="sequence-token", aggregation="sequence-sum"),
    options.ClipConfig(kl_coef=0.1, entropy_coef=0.1, aggregation="sequence-mean"),
    options.ClipConfig(kl_coef=0.1, kl_estimator="k2", kl_correction=False),
    options.ClipConfig(top_entropy=0.5, off_policy_mask=0.1, aggregation="sequence-sum"),
    options.CispoConfig(sampler_correction=options.SamplerCorrection(level="sequence", high=2.0)),
    options.VespoConfig(sampler_correction=options.SamplerCorrection(mode="mask", high=2.0)),
    options.GmpoConfig(top_entropy=0.5),
    options.ClipConfig(router_aux_coef=0.01, entropy_coef=0.1),
]


@pytest.mark.parametrize("name", NAMES)
class TestNamedLosses(LossSuite):
    @pytest.fixture(autouse=True)
    def _choose(self, name: str) -> None:
        self.name = name

    def make(self) -> Loss:
        loss: Loss = getattr(grpo_losses, self.name)()
        return loss


@pytest.mark.parametrize("config", COMPOSITIONS, ids=lambda c: c.describe().splitlines()[0][13:])
class TestCompositions(LossSuite):
    @pytest.fixture(autouse=True)
    def _choose(self, config: options.LossConfig) -> None:
        self.config = config

    def make(self) -> Loss:
        return PolicyLoss(self.config)


GROUPED = [
    "GroupAdvantage",
    "BatchAdvantage",
    "UnscaledAdvantage",
    "RlooAdvantage",
    "GdpoAdvantage",
]
GLOBAL = ["ReinforcePlusPlusAdvantage", "ReinforcePlusPlusBaselineAdvantage"]


def advantage(name: str) -> Advantage:
    found: Advantage = getattr(grpo_losses, name)()
    return found


@pytest.mark.parametrize("name", GROUPED)
class TestAdvantages(AdvantageSuite):
    @pytest.fixture(autouse=True)
    def _choose(self, name: str) -> None:
        self.name = name

    def make(self) -> Advantage:
        return advantage(self.name)


@pytest.mark.parametrize("name", GLOBAL)
class TestGlobalAdvantages(AdvantageSuite):
    # The mean over all tokens of the step is taken off every one of them.
    compares_groups = False

    @pytest.fixture(autouse=True)
    def _choose(self, name: str) -> None:
        self.name = name

    def make(self) -> Advantage:
        return advantage(self.name)


class TestWithKlInTheReward(AdvantageSuite):
    def make(self) -> Advantage:
        return grpo_losses.GroupAdvantage(grpo_losses.ScaledConfig(kl_coef=0.1))
