"""Rows of every form become the same prompts."""

import csv
import json
import os
from pathlib import Path

import datasets
import pytest

from grpo_core.builtin.config import DatasetConfig
from grpo_core.builtin.dataset import DatasetTask
from grpo_core.errors import ConfigError
from grpo_core.protocols import BuildContext, Task

ROWS = [
    {"prompt": "2 +3=?", "answer": "5", "born": "2024-01-01"},
    {"prompt": "7 -1=?", "answer": "007", "born": "2024-01-02"},
    {"prompt": "é\n9=?", "answer": "", "born": "2024-01-03"},
]
CHAT = [
    [{"role": "user", "content": "hi"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool": "t"}],
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def write(path: Path, rows: list[dict[str, object]]) -> str:
    """``rows`` in the form that the suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as handle:
            writer = csv.DictWriter(handle, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        datasets.Dataset.from_list(rows).to_parquet(str(path))
    return str(path)


def task(path: object, seed: int = 0, **options: object) -> DatasetTask:
    context = BuildContext(role="task", name="dataset", seed=seed, run_dir=None)
    return DatasetTask(DatasetConfig.model_validate({"path": path, **options}), context)


def seen(prompts: object) -> list[tuple[str, dict[str, object]]]:
    return [(p.content, dict(p.columns)) for p in prompts]  # type: ignore[attr-defined]


EXPECTED = [(row["prompt"], {k: v for k, v in row.items() if k != "prompt"}) for row in ROWS]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_files_of_every_form_hold_the_same_prompts(tmp_path: Path, suffix: str) -> None:
    made = task(write(tmp_path / f"some [1]{suffix}", ROWS))
    assert isinstance(made, Task)
    # Verbatim: neither dates, nor 007, nor an empty cell may change on the way to a reward.
    assert seen(made.train_prompts()) == EXPECTED
    assert [p.id for p in made.train_prompts()] == ["train/0", "train/1", "train/2"]
    assert len(made.eval_prompts()) == 0


def test_several_files_and_patterns_are_one_table(tmp_path: Path) -> None:
    first = write(tmp_path / "d/1.jsonl", ROWS[:1])
    write(tmp_path / "d/sub/2.parquet", ROWS[1:])
    both = task((first, str(tmp_path / "d/sub/*.parquet"))).train_prompts()
    assert seen(both) == EXPECTED
    assert [p.id for p in both[1:]] == ["train/1", "train/2"]


def test_a_column_that_only_some_rows_have_is_none_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('\n{"prompt": "a", "x": 1}\n\n{"prompt": "b", "y": {"z": [2]}}')
    assert seen(task(str(path)).train_prompts()) == [
        ("a", {"x": 1, "y": None}),
        ("b", {"x": None, "y": {"z": [2]}}),
    ]


def test_a_json_suffix_may_hold_json_lines(tmp_path: Path) -> None:
    lines = Path(write(tmp_path / "a.jsonl", ROWS)).rename(tmp_path / "a.json")
    assert seen(task(str(lines)).train_prompts()) == EXPECTED


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_messages_keep_the_keys_that_were_written(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a{suffix}", [{"prompt": chat, "answer": 1} for chat in CHAT])
    prompts = task(path).train_prompts()
    assert [list(p.content) for p in prompts] == CHAT
    assert prompts[0].conversational


@pytest.mark.parametrize("prompt", ["hi", CHAT[0]])
def test_a_system_prompt_opens_the_conversation(tmp_path: Path, prompt: object) -> None:
    path = write(tmp_path / "a.jsonl", [{"question": prompt}])
    (made,) = task(path, prompt_column="question", system_prompt="Be kind.").train_prompts()
    assert made.content == (
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "hi"},
    )


def test_a_saved_dataset_loses_its_tensor_format(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list([{"prompt": "a", "n": 1}, {"prompt": "b", "n": 2}])
    rows.with_format("numpy").select([1, 0]).save_to_disk(str(tmp_path / "saved"))
    prompts = task(str(tmp_path / "saved")).train_prompts()
    assert seen(prompts) == [("b", {"n": 2}), ("a", {"n": 1})]
    assert type(prompts[0].columns["n"]) is int


def test_splits_of_a_saved_dict_and_of_a_folder_of_files(tmp_path: Path) -> None:
    splits = {"train": ROWS[:2], "test": ROWS[2:]}
    made = datasets.DatasetDict({k: datasets.Dataset.from_list(v) for k, v in splits.items()})
    made.save_to_disk(str(tmp_path / "saved"))
    for name, rows in splits.items():
        write(tmp_path / f"files/data/{name}-00000.parquet", rows)
        write(tmp_path / f"lines/{name}.jsonl", rows)
    for folder in ("saved", "files", "lines"):
        both = task(str(tmp_path / folder), eval_split="test")
        assert seen(both.train_prompts()) == EXPECTED[:2]
        assert seen(both.eval_prompts()) == EXPECTED[2:]
        assert both.eval_prompts()[0].id == "eval/0"


def test_held_out_prompts_from_another_place(tmp_path: Path) -> None:
    train, held_out = write(tmp_path / "a.jsonl", ROWS[:2]), write(tmp_path / "b.csv", ROWS[2:])
    assert seen(task(train, eval_path=held_out).eval_prompts()) == EXPECTED[2:]


def test_a_hub_id_gets_subset_split_and_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(path: str, **options: object) -> datasets.Dataset:
        asked.append({"path": path, **options})
        return datasets.Dataset.from_list([{"prompt": options["split"]}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    made = task("org/set", subset="main", revision="abc", eval_split="test")
    assert asked == [
        {"path": "org/set", "name": "main", "split": split, "revision": "abc"}
        for split in ("train", "test")
    ]
    assert seen(made.eval_prompts()) == [("test", {})]


def test_a_fraction_is_held_out_by_seed_and_never_shares_a_prompt(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{n % 50}", "n": n} for n in range(100)]  # every prompt twice
    path = write(tmp_path / "a.jsonl", rows)
    made = task(path, seed=1, eval_fraction=0.2)
    train, held_out = ([p.content for p in x] for x in (made.train_prompts(), made.eval_prompts()))
    assert len(held_out) == 20
    assert len(train) == 80
    assert not set(train) & set(held_out)
    again = task(path, seed=1, eval_fraction=0.2).eval_prompts()
    assert [p.id for p in again] == [p.id for p in made.eval_prompts()]
    assert [p.content for p in task(path, seed=2, eval_fraction=0.2).eval_prompts()] != held_out


def test_rows_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "a.jsonl", ROWS))
    prompts = task(str(path)).train_prompts()
    descriptor = os.open(path, os.O_WRONLY)
    os.pwrite(descriptor, b'{"prompt": "2 +4', 0)
    os.close(descriptor)
    assert prompts[0].content == "2 +4=?"


def test_a_task_without_config_says_what_it_needs() -> None:
    with pytest.raises(ConfigError, match=r"needs a path: DatasetTask\(DatasetConfig\(path="):
        DatasetTask()


@pytest.mark.parametrize(
    "options", [{"eval_fraction": 0.1, "eval_split": "test"}, {"eval_split": "train"}]
)
def test_options_that_contradict_each_other(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="eval_fraction"):
        DatasetConfig.model_validate({"path": "x", **options})
