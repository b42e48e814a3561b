"""What is generated is current, and what is written by hand agrees with the code."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from grpo_core import (
    EvaluationSettings,
    ModelSettings,
    OptimizerSettings,
    Policy,
    Run,
    SamplingParams,
    TrainSettings,
    train,
)
from grpo_core.builtin.mixture import Mixture, Part
from grpo_core.demo import checkpoint
from grpo_core.demo.arithmetic import Arithmetic
from grpo_core.hooks import LIFECYCLE_HOOKS, REGISTRATION_HOOKS
from grpo_core.rewards import Reward
from grpo_core.settings import DynamicSamplingSettings, RewardExecution
from grpo_core.testing import ScriptedConfig, ScriptedGenerator
from grpo_core.types import GeneratedGroup, GenerateRequest, Rollout, ScoreRequest, Value
from grpo_losses import GroupAdvantage, Grpo, GrpoConfig, SamplerCorrection
from grpo_references import FrozenReference
from grpo_rewards import ExactAnswer
from grpo_tools import Tools, ToolsConfig


@pytest.fixture
def generate(root: Path) -> Iterator[Any]:
    """docs/generate.py, as it is when run."""
    sys.path.insert(0, str(root / "docs"))
    try:
        yield import_module("generate")
    finally:
        sys.path.remove(str(root / "docs"))


def test_generated_files_are_current(generate: Any) -> None:
    stale = [
        path.name
        for path, text in generate.generated().items()
        if not path.is_file() or path.read_text("utf-8") != text
    ]
    assert not stale, "run: python docs/generate.py"


def test_every_hook_has_a_heading_with_its_arguments(root: Path) -> None:
    text = (root / "docs/reference/hooks.md").read_text("utf-8")
    for name in REGISTRATION_HOOKS:
        assert f"\n### `{name}(register: Register)`\n" in text
    for name in LIFECYCLE_HOOKS:
        assert f"\n### `{name}(event: " in text


def test_every_metric_of_a_run_is_described_and_every_description_has_a_metric(
    tiny_model: Path, mixture: Path, tmp_path: Path, generate: Any
) -> None:
    groups = generate.metrics.groups()
    # Only generators that send weights elsewhere have them; vllm-server's tests compare its names.
    del groups["sync"]
    described = {n for group in groups.values() for n in group}
    every_term = GrpoConfig(
        kl_coef=0.1,
        entropy_coef=0.1,
        off_policy_mask=0.1,
        sampler_correction=SamplerCorrection(high=2.0),
        router_aux_coef=0.01,
    )
    losses = (mixture, Grpo(every_term)), (tiny_model, Grpo(GrpoConfig(top_entropy=0.5)))
    # Ranking entropies finds the old log-probs on its way, so that it needs a run of its own.
    found = {
        generic(name)
        for i, (model, loss) in enumerate(losses)
        for name in names_of_a_run(model, tmp_path / str(i), loss)
    }
    found |= {generic(name) for name in names_of_a_run_with_tools(tmp_path / "tools")}
    assert found == described


def generic(name: str) -> str:
    name = re.sub(r"^eval/(sums:)?(sampled|greedy)/", "eval/<kind>/", name)
    name = re.sub(r"^eval/<kind>/(tools|time)/.*", "eval/<kind>/<environment metric>", name)
    name = name.replace("source/sums/", "source/<source>/")
    name = re.sub(r"@\d+$", lambda found: "@<k>" if "pass" in name else "@<n>", name)
    name = re.sub(r"/(length-of|apart)(?=/|$)", "/<provider>", name)
    return name.replace("/letters", "/<name>")


def names_of_a_run(model: Path, folder: Path, loss: Grpo) -> set[str]:
    """The names of all metrics of a run in which everything happens."""
    run = Run(
        policy=Policy(ModelSettings(path=str(model)), OptimizerSettings()),
        task=Mixture([Part(source="sums", task=Arithmetic())]),
        # Some end by themselves and some are cut off.
        generator=Truncating(ScriptedConfig(completions=("no", "yes " * 9))),
        rewards=[
            Reward(provider=LengthOf(), label="length-of"),
            Reward(
                provider=ExactAnswer(),
                label="apart",
                execution=RewardExecution(isolation="process"),
            ),
        ],
        advantage=GroupAdvantage(),
        loss=loss,
        reference=FrozenReference(),
        settings=TrainSettings(
            steps=1,
            prompts_per_step=2,
            group_size=2,
            minibatches_per_step=2,
            dynamic_sampling=DynamicSamplingSettings(replay_groups=1),
        ),
        sampling=SamplingParams(max_tokens=8),
        evaluation=EvaluationSettings(
            prompts=2, sampling={"sampled": {"samples": 2}, "greedy": {"temperature": 0}}
        ),
        output=folder / "run",
    )
    result = train(run)
    return {
        name for step in (*result.history, *result.evaluations) for name in step if name != "step"
    }


def names_of_a_run_with_tools(folder: Path) -> set[str]:
    """Those that an environment and sampling ahead add; calls are made, but nothing is learned."""
    call = '<tool_call>{"name": "double", "arguments": {"a": 2}}</tool_call>'
    run = Run(
        policy=Policy(ModelSettings(path=str(checkpoint("habit"))), OptimizerSettings()),
        task=Arithmetic(),
        generator=Apart(ScriptedConfig(completions=((call, "4"),))),
        environment=Tools(ToolsConfig(chat_template="chatml"), tools=[double]),
        rewards=[Reward(provider=LengthOf(), label="length-of")],
        advantage=GroupAdvantage(),
        loss=Grpo(),
        settings=TrainSettings(steps=1, prompts_per_step=1, group_size=2, schedule="ahead"),
        sampling=SamplingParams(max_tokens=128),
        evaluation=EvaluationSettings(prompts=1, sampling={"greedy": {"temperature": 0}}),
        output=folder,
    )
    result = train(run)
    return {name for step in (*result.history, *result.evaluations) for name in step} - {"step"}


def double(a: int) -> int:
    """Double.

    Args:
        a: What.
    """
    return 2 * a


class Apart(ScriptedGenerator):
    """In a run of one step nothing is updated while it samples."""

    samples_apart = True


class Truncating(ScriptedGenerator):
    """Says what share of the distribution was left to draw from."""

    def generate(self, request: GenerateRequest) -> Iterator[GeneratedGroup]:
        for group in super().generate(request):
            completions_G = tuple(
                replace(c, kept_logmass=(-0.1,) * len(c.token_ids)) for c in group.completions_G
            )
            yield replace(group, completions_G=completions_G)


class LengthOf:
    """A reward that tells which answer was given."""

    name = "length"

    def score(self, request: ScoreRequest) -> list[Value]:
        request.log.metric("letters", 1.0)
        return [Value(value=float(len(r.token_ids))) for r in request.rollouts_B]

    def answer(self, rollout: Rollout) -> str:
        return rollout.text
