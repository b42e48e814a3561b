"""PPO through the core's own loop: it saves the policy alone, and resumes with its value head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from grpo_core import (
    CheckpointSettings,
    ModelSettings,
    OptimizerSettings,
    Policy,
    Run,
    SamplingParams,
    TrainSettings,
    hookimpl,
    load_run,
    train,
)
from grpo_core.demo import checkpoint
from grpo_core.demo.arithmetic import Arithmetic
from grpo_core.errors import ConfigError, PluginError
from grpo_core.types import RolloutsScored
from grpo_generator_hf import HFGenerator
from grpo_losses import Dapo, GroupAdvantage
from grpo_ppo import Gae, Ppo
from grpo_references import FrozenReference
from grpo_rewards import ExactAnswer
from grpo_savers import SafetensorsSaver

EXAMPLE = Path(__file__).parents[1] / "examples/arithmetic.yaml"


class StopsAt:
    def __init__(self, step: int) -> None:
        self._step = step

    @hookimpl
    def grpo_rollouts_scored(self, event: RolloutsScored) -> None:
        if event.step == self._step:
            raise OSError("power cut")


def make(output: Path, *, model: dict[str, Any] | None = None, **changes: Any) -> Run:
    settings = ModelSettings(path=str(checkpoint("habit")), **(model or {}))
    parts: dict[str, Any] = {
        "policy": Policy(settings, OptimizerSettings(learning_rate=1e-3)),
        "task": Arithmetic(),
        "generator": HFGenerator(),
        "rewards": [ExactAnswer()],
        "advantage": Gae(),
        "loss": Ppo(),
        "reference": FrozenReference(),
        "settings": TrainSettings(
            steps=4, prompts_per_step=8, group_size=1, minibatches_per_step=2, passes_per_step=2
        ),
        "sampling": SamplingParams(max_tokens=40),
        "checkpoints": CheckpointSettings(every_steps=1),
        "savers": [SafetensorsSaver()],
        "output": output,
    }
    return Run(**{**parts, **changes})


def state(run: Run) -> dict[str, Any]:
    return run.policy.state_dict()


@pytest.mark.parametrize("model", [None, {"lora": {"r": 4}}], ids=["full", "lora"])
def test_it_resumes_exactly_with_its_value_head(tmp_path: Path, model: Any) -> None:
    whole = make(tmp_path / "whole", model=model)
    expected = train(whole)
    with pytest.raises(PluginError, match="power cut"):
        train(make(tmp_path / "cut", model=model, observers=[StopsAt(2)]))
    resumed = make(tmp_path / "cut", model=model)
    result = train(resumed, resume="newest")
    weights, other = state(whole)["weights"], state(resumed)["weights"]
    assert "value_head.weight" in weights
    assert weights["value_head.weight"].any()
    assert weights.keys() == other.keys()
    assert all(torch.equal(weights[name], other[name]) for name in weights)
    timeless = [
        [{k: v for k, v in step.items() if not k.startswith("time/")} for step in r.history]
        for r in (expected, result)
    ]
    assert timeless[0] == timeless[1]
    assert timeless[0][-1]["loss/value"] > 0


def test_the_saved_model_is_the_policy_alone(tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    train(run)
    saved = load_file(tmp_path / "run/final/model.safetensors")
    assert not [name for name in saved if "value" in name and "head" in name]
    model, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "run/final", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    for name, weight in run.policy.model.named_parameters():
        assert torch.equal(weight, model.get_parameter(name)), name


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"loss": Dapo()}, "advantage .*Gae.* needs 'values', but loss .*Dapo.* does not"),
        ({"advantage": GroupAdvantage()}, "loss .*Ppo.* needs 'values'"),
    ],
)
def test_halves_that_do_not_belong_together(tmp_path: Path, parts: Any, message: str) -> None:
    settings = TrainSettings(steps=1, prompts_per_step=2, group_size=2)
    with pytest.raises(ConfigError, match=message):
        train(make(tmp_path / "run", settings=settings, **parts))


def test_the_config_finds_the_two_halves(tmp_path: Path) -> None:
    model = {"model": {"path": str(checkpoint("habit"))}}
    run = load_run(EXAMPLE, model, sets=["train.steps=1", f"output={tmp_path}/run"])
    assert isinstance(run.advantage, Gae)
    with pytest.raises(ConfigError, match="loss: loss 'ppo' needs a value head"):
        load_run(EXAMPLE, model, sets=["advantage=group", "train.group_size=2"])


@pytest.mark.slow
def test_it_learns_the_bundled_task(tmp_path: Path) -> None:
    model = {"model": {"path": str(checkpoint("habit"))}}
    run = load_run(EXAMPLE, model, sets=[f"output={tmp_path}/run", "observers=[]"])
    result = train(run)
    first, last = (result.evaluations[i]["eval/greedy/exact-answer"] for i in (0, -1))
    assert first < 0.5
    assert last > 0.85
