"""Tools and a real engine: the bundled calculator, whose policy calls a function."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from grpo_core import Run, SamplingParams, load_run, train
from grpo_core.trainer.sampling import request_of
from grpo_core.types import GeneratedGroup, GenerateRequest, Rollout
from grpo_generator_vllm_server import VLLMServerGenerator
from grpo_generator_vllm_server.launch import Launched
from grpo_tools import MultiTurn, MultiTurnConfig

pytestmark = pytest.mark.vllm

EXAMPLE = Path(__file__).parents[2] / "grpo-tools" / "examples" / "calculator"


class Waves:
    """A generator that knows nothing of turns."""

    def __init__(self, inner: VLLMServerGenerator) -> None:
        self.inner, self.waves = inner, 0

    def sync(self, update: Any) -> int:
        return self.inner.sync(update)

    def generate(self, request: GenerateRequest) -> Iterator[GeneratedGroup]:
        self.waves += 1
        return self.inner.generate(request)

    def close(self) -> None: ...


@pytest.fixture
def load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calculator_engine: Launched
) -> Callable[..., Run]:
    """The example's run, on the engine."""
    folder = tmp_path / "calculator"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("runs"))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("GRPO_VLLM_TOKEN", calculator_engine.plan.token)

    def load(**changes: Any) -> Run:
        config = yaml.safe_load(Path("run.yaml").read_text("utf-8"))
        urls = [calculator_engine.plan.url]
        generator = {"name": "vllm-server", "urls": urls, "sync": "file", "recover_seconds": 0}
        config |= {"generator": generator, "evaluation": None, "savers": []} | changes
        Path("server.yaml").write_text(yaml.safe_dump(config), "utf-8")
        return load_run("server.yaml")

    return load


@pytest.mark.parametrize("schedule", [{}, {"schedule": "ahead", "ahead_in_flight": True}])
def test_the_calculator_trains(load: Callable[..., Run], schedule: dict[str, Any]) -> None:
    """Sampler and trainer agree on every turn."""
    settings = {"steps": 4, "prompts_per_step": 8, "group_size": 8, **schedule}
    history = train(load(train=settings)).history
    assert len(history) == 4
    assert all(step["ratio/sampler_mismatch_max"] < 1e-3 for step in history)
    assert all(step["tools/turns"] > 1.1 for step in history), "results have been answered"
    assert all(0 < step["reward/exact-answer/mean"] < 0.9 for step in history)


class Again:
    """Asks twice more, whatever is said, after a time of chance."""

    delays = random.Random(0)

    def reset(self) -> None:
        self.asked = 0

    def step(self, text: str) -> str | None:
        time.sleep(0.2 * self.delays.random())
        self.asked += 1
        return None if self.asked > 2 else f"{self.asked}{self.asked + 3}*4{self.asked}=?"


def test_waves_and_turns_are_the_same_rollouts(load: Callable[..., Run]) -> None:
    run = load()
    generator = run.generator
    assert isinstance(generator, VLLMServerGenerator)
    assert generator.sync(run.policy.weight_update()) == 0
    request = request_of(
        run,
        list(run.task.train_prompts())[:8],
        keys=range(8),
        step=0,
        # The calculator guesses when it is sure: that it is asked again makes the turns here.
        sampling=SamplingParams(max_tokens=128, temperature=0.0),
        group_size=2,
    )

    def found(sampler: Any) -> dict[tuple[int, int], Rollout]:
        environment = MultiTurn(MultiTurnConfig(), environment_factory=Again)
        groups = environment.rollouts(request, sampler)
        return {(r.group, r.sample): r for group in groups for r in group}

    waves = Waves(generator)
    expected, native = found(waves), found(generator)
    generator.close()
    assert waves.waves >= 3
    assert len(native) == 16
    assert {r.metrics["tools/turns"] for r in native.values()} == {3}
    for place, rollout in native.items():
        assert rollout.token_ids == expected[place].token_ids
        assert rollout.finish_reason == expected[place].finish_reason
