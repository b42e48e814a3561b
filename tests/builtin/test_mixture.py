"""Several data sets as one task."""

import json
from collections import Counter
from pathlib import Path

import pytest

from grpo_core.builtin.config import MixtureConfig
from grpo_core.builtin.mixture import Mixture, MixtureTask, Part
from grpo_core.errors import ConfigError, DataError
from grpo_core.protocols import BuildContext, Task
from grpo_core.trainer.prompts import PromptStream

SIZES = {"a": 40, "b": 7, "c": 300}


@pytest.fixture
def places(tmp_path: Path) -> dict[str, str]:
    for name, size in SIZES.items():
        rows = [{"prompt": f"{name} {n}", name: n} for n in range(size)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return {name: str(tmp_path / f"{name}.jsonl") for name in SIZES}


def mixed(*sources: dict[str, object], seed: int = 0) -> MixtureTask:
    context = BuildContext(role="task", name="mixture", seed=seed, run_dir=None)
    return MixtureTask(MixtureConfig.model_validate({"sources": sources}), context)


def drawn(task: Task, steps: int, per_step: int = 4, seed: int = 0) -> list[list[str]]:
    stream = PromptStream(task.train_prompts(), per_step=per_step, seed=seed)
    return [[p.id for p in stream.at(step)] for step in range(steps)]


def weighted(places: dict[str, str], **weights: float) -> MixtureTask:
    return mixed(*({"path": places[name], "weight": w} for name, w in weights.items()))


def test_every_prompt_knows_its_source_and_keeps_its_columns(places: dict[str, str]) -> None:
    task = mixed({"path": places["a"], "label": "first"}, {"path": places["b"]})
    assert isinstance(task, Task)
    prompts = task.train_prompts()
    assert len(prompts) == 47
    assert (prompts[0].id, prompts[0].source) == ("first/train/0", "first")
    assert (prompts[-1].id, prompts[-1].source) == ("b/train/6", "b")
    assert dict(prompts[-1].columns) == {"b": 6}
    assert [p.id for p in prompts[39:41]] == ["first/train/39", "b/train/0"]


def test_without_weights_every_prompt_comes_once_per_epoch(places: dict[str, str]) -> None:
    task = mixed({"path": places["a"]}, {"path": places["b"]})
    ids = [name for step in drawn(task, 2, per_step=47) for name in step]
    assert Counter(ids[:47]) == Counter(p.id for p in task.train_prompts())
    assert sorted(ids[47:]) == sorted(ids[:47])


def test_weights_hold_in_every_stretch_of_a_run(places: dict[str, str]) -> None:
    steps = drawn(weighted(places, a=5, b=3, c=2), 500, per_step=10)
    for step in steps:
        found = Counter(name[0] for name in step)
        assert abs(found["a"] - 5) <= 1
        assert abs(found["b"] - 3) <= 1
        assert abs(found["c"] - 2) <= 1
    assert Counter(name[0] for step in steps for name in step) == {"a": 2500, "b": 1500, "c": 1000}


def test_each_source_has_epochs_of_its_own(places: dict[str, str]) -> None:
    ids = [name for step in drawn(weighted(places, a=1, b=1, c=1), 500) for name in step]
    for name, size in SIZES.items():
        mine = [i for i in ids if i.startswith(name)]
        for epoch in range(len(mine) // size):
            assert len(set(mine[epoch * size : (epoch + 1) * size])) == size
        assert len(mine) < 2 * size or mine[:size] != mine[size : 2 * size]


def test_a_resumed_run_goes_on_with_the_next_prompt(places: dict[str, str]) -> None:
    whole = drawn(weighted(places, a=0.7, b=0.2, c=0.1), 400)
    fresh = PromptStream(weighted(places, a=0.7, b=0.2, c=0.1).train_prompts(), per_step=4, seed=0)
    # Past the period of the turns, and from the back.
    for step in (399, 251, 250, 3):
        assert [p.id for p in fresh.at(step)] == whole[step]
    assert drawn(weighted(places, a=0.7, b=0.2, c=0.1), 400, seed=1) != whole


def test_replacements_are_of_the_same_source(places: dict[str, str]) -> None:
    stream = PromptStream(weighted(places, a=1, c=3).train_prompts(), per_step=8, seed=0)
    for step in range(20):
        rounds = [[p.id for p in stream.at(step, number)] for number in range(4)]
        assert len({name for found in rounds for name in found}) == 32
        for place in zip(*rounds, strict=True):
            assert len({name[0] for name in place}) == 1


def test_a_weight_of_one_in_a_million_is_still_drawn(places: dict[str, str]) -> None:
    steps = drawn(weighted(places, a=1e6, b=1), 250)
    assert Counter(name[0] for step in steps for name in step) == {"a": 999, "b": 1}


def test_held_out_prompts_are_interleaved(places: dict[str, str]) -> None:
    sources = [{"path": places[n], "eval_path": places[n]} for n in ("a", "b", "c")]
    held_out = mixed(*sources).eval_prompts()
    assert len(held_out) == sum(SIZES.values())
    first = Counter(p.source for p in held_out[:87])
    assert {n: round(s * 87 / 347) for n, s in SIZES.items()} == pytest.approx(first, abs=1)
    assert len({p.id for p in held_out}) == len(held_out)
    assert held_out[0].id == "c/eval/0"


def test_sources_are_evaluated_apart(places: dict[str, str]) -> None:
    task = mixed({"path": places["a"], "eval_path": places["b"]}, {"path": places["c"]})
    sets = task.eval_sets()
    assert list(sets) == ["a"], "a source without held-out prompts has no set"
    assert [p.id for p in sets["a"][:2]] == ["a/eval/0", "a/eval/1"]
    assert mixed({"path": places["a"]}).eval_sets() == {}
    nested = Mixture([Part(source="x", task=task), Part(source="y", task=task)])
    assert list(nested.eval_sets()) == ["x-a", "y-a"]
    assert nested.eval_sets()["x-a"][0].id == "x/a/eval/0"


def test_each_source_has_its_own_options(places: dict[str, str]) -> None:
    task = mixed(
        {"path": places["a"], "prompt_template": "A: {prompt}", "max_prompts": 5},
        {"path": places["b"], "system_prompt": "Be kind.", "rename_columns": {"b": "answer"}},
    )
    prompts = task.train_prompts()
    assert len(prompts) == 12
    assert str(prompts[0].content).startswith("A: a ")
    assert prompts[-1].conversational
    assert dict(prompts[-1].columns) == {"answer": 6}


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([{"path": "x/a.jsonl"}, {"path": "y/a.jsonl"}], "two sources are called 'a'"),
        ([{"path": "a", "weight": 1}, {"path": "b"}], "source 'b' has no weight"),
        ([{"path": "a", "weight": 0}], "greater than 0"),
        ([{"path": "a", "label": "a/b"}], "label"),
        ([], "at least 1"),
    ],
)
def test_sources_that_do_not_fit_together(sources: list[object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MixtureConfig.model_validate({"sources": sources})


def test_in_python_parts_must_fit_together_too(places: dict[str, str]) -> None:
    task = mixed({"path": places["a"]})
    with pytest.raises(ConfigError, match="names of their own"):
        Mixture([Part(source="a", task=task), Part(source="a", task=task)])
    with pytest.raises(ConfigError, match="needs sources"):
        MixtureTask()


def test_shares_that_are_not_the_sequence_are_refused(places: dict[str, str]) -> None:
    prompts = weighted(places, a=1, b=1).train_prompts()
    prompts.shares = prompts.shares[:1]  # type: ignore[attr-defined]
    with pytest.raises(DataError, match=r"\[40\] prompts, its sequence has 47"):
        PromptStream(prompts, per_step=1, seed=0)
