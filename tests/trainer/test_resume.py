"""A run that is stopped and resumed equals one that was not: weights, metrics, token ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from grpo_core import CheckpointSettings, EvaluationSettings, Run, hookimpl, train
from grpo_core.builtin.jsonl import JsonlMetrics, read_metrics
from grpo_core.errors import PluginError
from grpo_generator_hf import HFConfig, HFGenerator
from grpo_losses import AdaptiveEntropy, Dapo, DapoConfig
from grpo_references import EmaConfig, EmaReference
from grpo_savers import RolloutsSaver

MakeRun = Callable[..., Run]
STEPS = 3
EVERY_STEP = CheckpointSettings(every_steps=1, every_minutes=0)


def varied(completion_ids: Any, **_: Any) -> list[float]:
    """Different within a group, except where prompts are even: those teach nothing."""
    return [float(len(ids) > 9 and sum(ids) % 7 > 3) for ids in completion_ids]


class Stateful:
    """A reward that depends on how often it was asked, and on the global generators."""

    name = "stateful"

    def __init__(self) -> None:
        self.asked = 0

    def score(self, request: Any) -> Any:
        from grpo_core.types import Value

        self.asked += 1
        noise = float(torch.rand(()))
        return [
            Value(value=self.asked * 0.1 + noise + sum(r.token_ids) % 5) for r in request.rollouts_B
        ]

    def state_dict(self) -> dict[str, int]:
        return {"asked": self.asked}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.asked = state["asked"]


class FailsAt:
    """Ends the run as an error in the given hook of the given step would."""

    def __init__(self, step: int, hook: str = "scored") -> None:
        self._step, self._hook = step, hook

    @hookimpl
    def grpo_rollouts_scored(self, event: Any) -> None:
        if self._hook == "scored" and event.step == self._step:
            raise OSError("power cut")

    @hookimpl
    def grpo_weights_synced(self, event: Any) -> None:
        if self._hook == "synced" and event.step == self._step:
            raise OSError("power cut")


VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {"model": {"lora": {"r": 4}}},
    "ema, two minibatches, adaptive coefficient": {
        "reference": lambda: EmaReference(EmaConfig(every=2)),
        "loss": lambda: Dapo(
            DapoConfig(kl_coef=0.1, adaptive_entropy=AdaptiveEntropy(target=9.0, delta=0.05))
        ),
        "train": {"minibatches_per_step": 2, "passes_per_step": 2},
    },
    "replay": {"train": {"dynamic_sampling": {"max_rounds": 2, "replay_groups": 8}}},
    "stateful reward, evaluation": {
        "rewards": lambda: [Stateful()],
        "evaluation": EvaluationSettings(every=2),
    },
    "ahead": {
        "generator": lambda: HFGenerator(HFConfig(device="cpu")),
        "train": {"schedule": "ahead", "passes_per_step": 2},
        "evaluation": EvaluationSettings(every=2),
    },
    "ahead, replay": {
        "generator": lambda: HFGenerator(HFConfig(device="cpu")),
        "train": {
            "schedule": "ahead",
            "dynamic_sampling": {"max_rounds": 2, "replay_groups": 8},
        },
    },
}


def build(make_run: MakeRun, output: Path, variant: str, **changes: Any) -> Run:
    parts = {k: v() if callable(v) else v for k, v in VARIANTS[variant].items()}
    settings = {"steps": STEPS, "prompts_per_step": 2, "group_size": 3}
    settings |= {**parts.pop("train", {}), **changes.pop("train", {})}
    observers = [JsonlMetrics(), *changes.pop("observers", ())]
    defaults = {"rewards": [varied], "checkpoints": EVERY_STEP, "generator": HFGenerator()}
    task = changes.pop("task")
    return make_run(
        **{**defaults, **parts, **changes},
        task=task,
        train=settings,
        output=output,
        observers=observers,
        savers=[RolloutsSaver()],
    )


def outcome(run: Run) -> dict[str, Any]:
    """All that must not depend on stops."""
    rows = [
        row
        for path in sorted((run.output / "rollouts").glob("*.parquet"))
        for row in pq.read_table(path).to_pylist()
    ]
    records = read_metrics(run.output / "metrics.jsonl")
    for record in records:
        for name in [n for n in record if n.startswith(("time/", "wall_time"))]:
            del record[name]
    weights = {n: p.detach().clone() for n, p in run.policy.model.named_parameters()}
    return {"rows": rows, "records": records, "weights": weights}


def assert_equal(one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    assert [(r["event"], r["step"]) for r in one["records"]] == [
        (r["event"], r["step"]) for r in other["records"]
    ]
    assert one["records"] == other["records"]
    assert one["rows"] == other["rows"]
    assert one["weights"].keys() == other["weights"].keys()
    for name, weight in one["weights"].items():
        assert torch.equal(weight, other["weights"][name]), name


@pytest.fixture
def task(list_task: Any) -> Any:
    return list_task([f"{i} + {i}?" for i in range(5)], held_out=["1 + 1?", "2 + 3?"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_resumed_equals_uninterrupted(
    make_run: MakeRun, tmp_path: Path, task: Any, variant: str
) -> None:
    whole = build(make_run, tmp_path / "whole", variant, task=task)
    train(whole)
    expected = outcome(whole)
    if "replay" in variant:
        # Else the buffer would not matter.
        assert sum(r.get("sampling/groups_replayed", 0) for r in expected["records"]) > 0
    for hook, step in (("synced", 1), ("scored", 2)):
        broken = build(
            make_run, tmp_path / "stopped", variant, task=task, observers=[FailsAt(step, hook)]
        )
        with pytest.raises(PluginError, match="power cut"):
            train(broken, resume="newest")
    last = build(make_run, tmp_path / "stopped", variant, task=task)
    result = train(last, resume="newest")
    assert len(result.history) == STEPS
    assert_equal(outcome(last), expected)
