"""Columns under other names, prompts from templates, and limits on what is trained on."""

import json
import logging
from pathlib import Path

import pytest

from grpo_core.builtin.config import DatasetConfig
from grpo_core.builtin.dataset import DatasetTask
from grpo_core.errors import DataError
from grpo_core.protocols import BuildContext
from grpo_core.types import Prompt

ROWS = [{"question": f"{n} +1=?", "solution": str(n + 1), "level": n % 3} for n in range(60)]


@pytest.fixture
def data(tmp_path: Path) -> str:
    return write(tmp_path, ROWS)


def write(folder: Path, rows: list[dict[str, object]], name: str = "sums.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def train(path: str, seed: int = 0, **options: object) -> list[Prompt]:
    return list(task(path, seed, **options).train_prompts())


def task(path: str, seed: int = 0, **options: object) -> DatasetTask:
    context = BuildContext(role="task", name="dataset", seed=seed, run_dir=None)
    return DatasetTask(DatasetConfig.model_validate({"path": path, **options}), context)


def test_renamed_columns_are_what_everything_else_sees(data: str) -> None:
    names = {"question": "prompt", "solution": "answer"}
    first = train(data, rename_columns=names)[0]
    assert first.content == "0 +1=?"
    assert dict(first.columns) == {"answer": "1", "level": 0}


def test_two_columns_may_change_places(tmp_path: Path) -> None:
    path = write(tmp_path, [{"prompt": "p", "a": 1, "b": 2}])
    assert dict(train(path, rename_columns={"a": "b", "b": "a"})[0].columns) == {"b": 1, "a": 2}


def test_a_template_makes_the_prompt_and_leaves_the_columns(data: str) -> None:
    first = train(data, prompt_template="Level {level}: {question} Answer in \\boxed{{}}.")[0]
    assert first.content == "Level 0: 0 +1=? Answer in \\boxed{}."
    assert dict(first.columns) == ROWS[0]


def test_a_template_over_the_prompt_itself(tmp_path: Path) -> None:
    path = write(tmp_path, [{"prompt": "2+2"}])
    (only,) = train(path, prompt_template="{prompt}=?", rename_columns={})
    assert only.content == "2+2=?"
    assert only.columns == {}


def test_held_out_prompts_are_made_the_same_way(data: str, tmp_path: Path) -> None:
    other = write(tmp_path, [{"question": "9?"}], "other.jsonl")
    made = task(data, prompt_template="Q: {question}", eval_path=other, system_prompt="Be brief.")
    (only,) = made.eval_prompts()
    assert [m["content"] for m in only.content] == ["Be brief.", "Q: 9?"]


def test_a_plain_prompt_can_become_a_conversation(data: str) -> None:
    first = train(data, prompt_column="question", conversational=True)[0]
    assert first.content == ({"role": "user", "content": "0 +1=?"},)
    assert first.conversational


def test_limits_choose_by_the_seed_and_keep_the_order(data: str) -> None:
    ids = [p.id for p in train(data, prompt_column="question", max_prompts=10)]
    assert len(ids) == 10
    assert ids == sorted(ids, key=lambda name: int(name.removeprefix("train/")))
    assert ids == [p.id for p in train(data, prompt_column="question", max_prompts=10)]
    assert ids != [p.id for p in train(data, 1, prompt_column="question", max_prompts=10)]
    # Not the first ten: sorted data would be trained on in part.
    assert ids != [f"train/{n}" for n in range(10)]
    assert len(train(data, prompt_column="question", fraction=0.25)) == 15
    assert len(train(data, prompt_column="question", fraction=0.25, max_prompts=7)) == 7
    assert len(train(data, prompt_column="question", max_prompts=1000)) == 60


def test_limits_do_not_touch_what_is_held_out(data: str) -> None:
    made = task(data, prompt_column="question", eval_fraction=0.2, max_prompts=5)
    everything = task(data, prompt_column="question", eval_fraction=0.2)
    assert [p.id for p in made.eval_prompts()] == [p.id for p in everything.eval_prompts()]
    held_out = {p.content for p in made.eval_prompts()}
    assert len(held_out) == 12
    assert held_out.isdisjoint(p.content for p in made.train_prompts())


def test_long_prompts_are_left_out_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    chat = [{"role": "user", "content": [{"type": "text", "text": "x" * 30}]}]
    rows = [{"prompt": [{"role": "user", "content": "short"}]}, {"prompt": chat}]
    path = write(tmp_path, rows)
    with caplog.at_level(logging.WARNING):
        assert [p.id for p in train(path, max_prompt_chars=20)] == ["train/0"]
    assert "1 of 2 prompts have more than 20 characters" in caplog.text
    caplog.clear()
    assert len(train(path, max_prompt_chars=30)) == 2
    assert not caplog.text
    with pytest.raises(DataError, match="every prompt has more than 3 characters"):
        task(path, max_prompt_chars=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no column 'prompt'.*: question, solution, level.*prompt_column: question"),
        ({"prompt_column": "quest"}, "no column 'quest'.*prompt_column: question"),
        ({"prompt_template": "{qestion}"}, "'qestion', which prompt_template.*mean 'question'"),
        ({"rename_columns": {"anser": "x"}}, "'anser', which rename_columns asks for"),
        ({"rename_columns": {"solution": "level"}}, "a column 'level' already.*level: old_level"),
    ],
)
def test_a_missing_column_is_named_with_what_there_is(
    data: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=f"sums.jsonl.*{message}"):
        task(data, **options)


def test_a_null_in_a_template_names_its_row(tmp_path: Path) -> None:
    path = write(tmp_path, [{"question": "a"}, {"question": None}])
    with pytest.raises(DataError, match=r"line 2: `question`, which prompt_template .* is null"):
        task(path, prompt_template="Q: {question}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt_template": "no column"}, "names no column"),
        ({"prompt_template": "{}"}, "names no column.*written twice"),
        ({"prompt_template": "{question"}, "written twice"),
        ({"prompt_template": "{question.__class__}"}, "names no column"),
        ({"prompt_template": "{question!r}"}, "names no column"),
        ({"prompt_template": "{q}", "prompt_column": "q"}, "keep one of them"),
        ({"rename_columns": {"a": "c", "b": "c"}}, "'c' to two columns"),
    ],
)
def test_options_that_cannot_be_meant(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DatasetConfig.model_validate({"path": "x", **options})
