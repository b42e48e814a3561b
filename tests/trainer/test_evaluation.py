"""Held-out prompts: how many completions, which numbers, and of which model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from grpo_core import EvaluationSettings, Run, SamplingParams, evaluate_model, hookimpl, train
from grpo_core.errors import ConfigError
from grpo_core.testing import ScriptedConfig, ScriptedGenerator
from grpo_core.trainer.evaluation import Answers, measures
from grpo_core.types import Evaluated, Prompt
from grpo_generator_hf import HFGenerator
from grpo_rewards import ExactAnswer
from grpo_savers import SafetensorsSaver

MakeRun = Callable[..., Run]
FOUR = {"sampled": {"samples": 4}}


class Watcher:
    def __init__(self) -> None:
        self.seen: list[Evaluated] = []

    @hookimpl
    def grpo_evaluated(self, event: Evaluated) -> None:
        self.seen.append(event)


class TwoSets:
    """A task with two held-out data sets."""

    def train_prompts(self) -> Sequence[Prompt]:
        return self.eval_sets()["easy"]

    def eval_prompts(self) -> Sequence[Prompt]:
        return ()

    def eval_sets(self) -> dict[str, Sequence[Prompt]]:
        return {
            name: [
                Prompt(id=f"{name}/{i}", content=f"{name} {i}?", columns={"answer": "yes"})
                for i in range(count)
            ]
            for name, count in (("easy", 3), ("hard", 5))
        }


def found(results: Sequence[Any]) -> dict[tuple[str, str, str], float]:
    return {(r.label, r.reward, r.measure): r.value for r in results}


def test_measures_by_hand() -> None:
    prompts = [
        Answers(values=(1.0, 0.0, 0.0, 1.0), given=("5", "6", "6", "5")),  # a tie: the first wins
        Answers(values=(0.0, 0.0, 0.0, 1.0), given=("1", "1", None, "2")),
        Answers(values=(1.0, 1.0), given=("9", "9")),  # two samples failed
        Answers(values=(), given=()),
    ]
    numbers = {m["measure"]: (m["value"], m["prompts"]) for m in measures(prompts, 4, 1.0)}
    assert numbers == {
        "mean@4": (pytest.approx((0.5 + 0.25 + 1) / 3), 3),
        "pass@1": (pytest.approx((0.5 + 0.25 + 1) / 3), 3),
        "pass@2": (pytest.approx((5 / 6 + 1 / 2 + 1) / 3), 3),
        "pass@4": (1.0, 2),
        "majority@4": (pytest.approx(2 / 3), 3),
    }


def test_several_samples_of_several_sets(make_run: MakeRun) -> None:
    watcher = Watcher()
    texts = tuple(f"<answer>{word}</answer>" for word in ("yes", "no", "yes"))
    run = make_run(
        task=TwoSets(),
        generator=ScriptedGenerator(ScriptedConfig(completions=texts)),
        rewards=[ExactAnswer()],
        evaluation=EvaluationSettings(
            prompts=4, sampling={"three": {"samples": 3}, "greedy": {"temperature": 0}}
        ),
        observers=[watcher],
        train={"steps": 1, "group_size": 3},
        sampling=SamplingParams(max_tokens=64),
    )
    result = train(run)
    first = [e for e in watcher.seen if e.step == 0]
    labels = ["easy:three", "easy:greedy", "hard:three", "hard:greedy"]
    assert [e.label for e in first] == labels
    assert [len(e.rollouts_B) for e in first] == [9, 3, 12, 4]
    # No two rollouts of a way draw with the same random numbers.
    keys = [(r.group, r.sample) for e in first if "three" in e.label for r in e.rollouts_B]
    assert len(set(keys)) == 9 + 12
    metrics = result.evaluations[0]
    assert metrics["eval/hard:three/exact-answer"] == pytest.approx(2 / 3)
    assert metrics["eval/hard:three/exact-answer/pass@3"] == 1.0
    assert metrics["eval/hard:three/exact-answer/majority@3"] == 1.0
    assert metrics["eval/hard:three/exact-answer/pass@2"] == 1.0
    assert "eval/hard:greedy/exact-answer/pass@1" not in metrics


def test_the_model_is_read_back(make_run: MakeRun, tmp_path: Path, list_task: Any) -> None:
    """With adapters, whose saved form differs most from what was trained."""
    watcher = Watcher()
    run = make_run(
        model={"lora": {"r": 2}},
        task=list_task(["a?", "b?"], held_out=["c?", "d?", "e?"]),
        generator=HFGenerator(),
        rewards=[length],
        savers=[SafetensorsSaver()],
        observers=[watcher],
        evaluation=EvaluationSettings(sampling=FOUR, after_saving=True),
    )
    result = train(run)
    last = {e.label: e for e in watcher.seen[-2:]}
    assert list(last) == ["sampled", "saved:sampled"]
    one, other = ([r.token_ids for r in e.rollouts_B] for e in last.values())
    assert one == other
    assert all(r.saved for r in last["saved:sampled"].results)
    metrics = result.evaluations[-1]
    assert metrics["eval/saved:sampled/length"] == metrics["eval/sampled/length"]


def test_a_model_that_was_saved_wrongly_shows(make_run: MakeRun, list_task: Any) -> None:
    class Forgets(SafetensorsSaver):
        def save(self, request: Any) -> Any:
            weight = request.policy.model.get_input_embeddings().weight
            kept = weight.detach().clone()
            with torch.no_grad():
                weight.zero_()
            try:
                return super().save(request)
            finally:
                with torch.no_grad():
                    weight.copy_(kept)

    watcher = Watcher()
    run = make_run(
        task=list_task(["a?", "b?"], held_out=["c?", "d?", "e?"]),
        generator=HFGenerator(),
        rewards=[length],
        savers=[Forgets()],
        observers=[watcher],
        evaluation=EvaluationSettings(sampling=FOUR, after_saving=True),
    )
    train(run)
    one, other = ([r.token_ids for r in e.rollouts_B] for e in watcher.seen[-2:])
    assert one != other


def test_without_a_run(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(evaluation=EvaluationSettings(prompts=2, sampling=FOUR))
    (event,) = evaluate_model(run)
    # The task of `make_run` holds nothing out: its training prompts are taken.
    assert [r.prompt.id for r in event.rollouts_B] == ["train/0"] * 4 + ["train/1"] * 4
    assert not (tmp_path / "run").exists()
    assert json.dumps([dict(r.plain()) for r in event.results])
    with pytest.raises(ConfigError, match="evaluation is null"):
        evaluate_model(make_run())


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"greedy": {"temperature": 0, "samples": 2}}, "all 2 samples of a prompt would be the"),
        ({"a/b": {}}, "'a/b' cannot be part of a metric's name"),
        ({}, "at least 1 item"),
    ],
)
def test_settings_that_mean_nothing(sampling: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EvaluationSettings(sampling=sampling)


def length(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [float(len(ids)) for ids in completion_ids]
