"""A run of a few tiny parts, to be varied by each test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from grpo_core import ModelSettings, OptimizerSettings, Policy, Run, SamplingParams, TrainSettings
from grpo_core.policy.module import PolicyModule
from grpo_core.testing import ScriptedConfig, ScriptedGenerator
from grpo_core.types import Prompt
from grpo_losses import Dapo, GroupAdvantage


class ListTask:
    """Prompts from a list, held-out ones too."""

    def __init__(self, texts: Sequence[str], held_out: Sequence[str] = ()) -> None:
        self.train = [Prompt(id=f"train/{i}", content=t) for i, t in enumerate(texts)]
        self.held_out = [Prompt(id=f"eval/{i}", content=t) for i, t in enumerate(held_out)]

    def train_prompts(self) -> Sequence[Prompt]:
        return self.train

    def eval_prompts(self) -> Sequence[Prompt]:
        return self.held_out


def says_yes(completions: list[str], **_: Any) -> list[float]:
    """1 for a completion with "yes" in it."""
    return [float("yes" in completion) for completion in completions]


@pytest.fixture
def make_run(tiny_model: Path, tmp_path: Path) -> Callable[..., Run]:
    """Keyword arguments replace parts of a run that rewards "yes" over "no"."""

    def make(**changes: Any) -> Run:
        model = ModelSettings(**{"path": str(tiny_model), **changes.pop("model", {})})
        optimizer = OptimizerSettings(**{"learning_rate": 1e-3, **changes.pop("optimizer", {})})
        train = {"steps": 2, "prompts_per_step": 2, "group_size": 2, **changes.pop("train", {})}
        parts: dict[str, Any] = {
            "policy": Policy(model, optimizer),
            "task": ListTask(["a?", "b?", "c?"]),
            "generator": ScriptedGenerator(ScriptedConfig(completions=("yes", "no"))),
            "advantage": GroupAdvantage(),
            "loss": Dapo(),
            "rewards": [says_yes],
            "settings": TrainSettings(**train),
            "sampling": SamplingParams(max_tokens=16),
            "output": tmp_path / "run",
        }
        return Run(**{**parts, **changes})

    return make


@pytest.fixture
def list_task() -> type[ListTask]:
    return ListTask


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Token positions of every forward pass of the policy module."""
    counts: list[int] = []
    forward = PolicyModule.forward

    def counting(self: PolicyModule, inputs: Any, **options: Any) -> Any:
        counts.append(inputs.tokens)
        return forward(self, inputs, **options)

    # Watches the real forward; nothing is replaced.
    monkeypatch.setattr(PolicyModule, "forward", counting)
    return counts
