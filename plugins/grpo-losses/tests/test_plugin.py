"""What every plugin promises, and what a config can know of advantages."""

from typing import Any

import pytest

from grpo_core.config import load_config
from grpo_core.errors import ConfigError
from grpo_core.plugins import Registry, config_model
from grpo_core.testing import PluginSuite


class TestPlugin(PluginSuite):
    distribution = "grpo-losses"
    package = "grpo_losses"


BASE = {
    "model": {"path": "somewhere"},
    "task": "arithmetic",
    "rewards": ["exact-answer"],
    "train": {"steps": 1},
}


@pytest.mark.parametrize(
    ("blocks", "words"),
    [
        (
            {"loss": {"name": "gmpo", "ratio": "sequence"}},
            "it clips the tokens' ratios and takes their geometric mean itself; use 'token'",
        ),
        ({"loss": {"name": "dapo", "kl_coef": 0.1}}, "or loss.kl_coef to 0"),
        ({"advantage": {"name": "rloo", "kl_coef": 0.1}}, "or advantage.kl_coef to 0"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused_with_the_reason(
    blocks: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config([{**BASE, "reference": "none", **blocks}])
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("loss", "advantage"),
    [("dapo", "group"), ("dr-grpo", "none"), ("rloo", "rloo"), ("reinforce-pp", "reinforce-pp")],
)
def test_a_loss_brings_its_papers_advantage(loss: str, advantage: str) -> None:
    resolved = load_config([{**BASE, "loss": loss}])
    assert {c.role: c.name for c in resolved.components}["advantage"] == advantage


@pytest.mark.parametrize("name", ["batch", "group", "none"])
def test_a_config_can_refuse_groups_of_one_without_torch(name: str) -> None:
    model = config_model(Registry.installed().get("advantage", name))
    assert getattr(model, "min_group_size", None) == 2
