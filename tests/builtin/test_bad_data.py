"""Bad data is named, with its place, before anything else starts."""

import json
from pathlib import Path

import datasets
import pytest

from grpo_core.builtin.config import DatasetConfig
from grpo_core.builtin.dataset import DatasetTask
from grpo_core.errors import DataError


def load(path: object, **options: object) -> DatasetTask:
    return DatasetTask(DatasetConfig.model_validate({"path": str(path), **options}))


def message(path: object, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        load(path, **options)
    return str(caught.value)


GOOD = {"prompt": "a"}
USER = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (None, "`prompt` is missing or null"),
        ("", "`prompt` is empty"),
        (" \n", "`prompt` is empty"),
        (3, "`prompt` is of type int; expected text or a list of messages"),
        ({"role": "user"}, "`prompt` is of type dict; expected text"),
        ("\ud83d", "half a surrogate pair at character 0"),
        ([], "`prompt` is an empty list of messages"),
        (["hi"], "has a str for message 0; expected an object"),
        ([USER, {"content": "x"}], "has no `role` in message 1"),
        ([{"role": "user"}], "has no `content` in message 0 (user)"),
        ([{"role": "user", "content": ""}], "a message 0 (user) whose content is empty"),
        ([USER], "is a list of messages, unlike the one of"),
    ],
)
def test_a_bad_prompt_is_named_by_its_line(tmp_path: Path, prompt: object, expected: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in (GOOD, GOOD, {"prompt": prompt})))
    text = message(path)
    assert f"{path}, line 3: " in text
    assert expected in text


def test_a_bad_prompt_of_the_held_out_data_is_found_too(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(GOOD))
    (tmp_path / "b.json").write_text('[{"prompt": "a"}, {"x": 1}]')
    text = message(tmp_path / "a.jsonl", eval_path=str(tmp_path / "b.json"))
    assert f"{tmp_path / 'b.json'}, row 1 (counted from 0): `prompt` is missing" in text


def test_a_null_in_a_parquet_file_is_named_by_its_row(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    rows = [{"prompt": "x"}] * 5000 + [{"prompt": None}]
    datasets.Dataset.from_list(rows).to_parquet(str(file))
    assert f"{file}, row 5000 (counted from 0): `prompt` is missing" in message(file)


def test_a_torn_last_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "a"}\n\n{"prompt": "b"')
    text = message(path)
    assert f"{path}, line 3 is not valid JSON: Expecting ',' delimiter" in text
    assert "was the file cut off?" in text


def test_lines_that_are_no_objects(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('"just text"\n')
    assert f"{path}, line 1 is a JSON str; expected one object per line" in message(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_an_empty_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("[]" if name == "a.json" else "")
    assert str(tmp_path / name) in message(tmp_path / name)
    assert "empty" in message(tmp_path / name) or "has no rows" in message(tmp_path / name)


def test_no_prompt_column_names_those_that_exist(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": "a", "answer": "b"}')
    text = message(path)
    assert f"{path} has no column 'prompt'; its columns are: question, answer." in text
    assert "for instance prompt_column: question" in text


def test_a_system_prompt_twice(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": [{"role": "system", "content": "x"}, USER]}))
    assert len(load(path).train_prompts()) == 1
    assert "begins with a system message already" in message(path, system_prompt="y")


@pytest.mark.parametrize("path", ["nowhere.jsonl", "./nowhere", "/no/where", "a/b/c"])
def test_a_missing_file_is_no_hub_id(path: str) -> None:
    assert f"there is no file or folder {path!r} (looked in {Path.cwd()})" in message(path)


def test_a_pattern_without_files(tmp_path: Path) -> None:
    assert "no file matches" in message(tmp_path / "*.jsonl")


def test_an_unknown_suffix_names_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").write_text("x")
    text = message(tmp_path / "a.xlsx")
    assert "suffix '.xlsx', which is not read; these are: .jsonl, .json, .parquet, .csv" in text


def test_an_unreachable_hub_id_says_that_it_was_taken_for_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    text = message("nobody/nothing")
    assert "nobody/nothing (split train) cannot be loaded" in text
    assert "there is no file or folder 'nobody/nothing'" in text


def test_torn_files_of_other_formats_are_named(tmp_path: Path) -> None:
    whole = tmp_path / "whole.parquet"
    datasets.Dataset.from_list([GOOD] * 100).to_parquet(str(whole))
    torn = tmp_path / "torn.parquet"
    torn.write_bytes(whole.read_bytes()[:-20])
    assert f"{torn} cannot be loaded: " in message(torn)
    ragged = tmp_path / "a.csv"
    ragged.write_text("prompt,answer\na,b\nc,d,e\n")
    assert f"{ragged} cannot be loaded: ArrowInvalid: CSV parse error" in message(ragged)
    listing = tmp_path / "a.json"
    listing.write_text('[{"prompt": "a"}, 3')
    assert f"{listing} is not valid JSON" in message(listing)
    listing.write_text('[{"prompt": "a"}, 3]')
    assert f"{listing}, row 1 (counted from 0) is a JSON int" in message(listing)


def test_a_split_that_is_not_there(tmp_path: Path) -> None:
    one = datasets.Dataset.from_list([GOOD])
    datasets.DatasetDict({"test": one}).save_to_disk(str(tmp_path / "saved"))
    assert "no such split; there are: test" in message(tmp_path / "saved")


def test_a_fraction_that_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(GOOD))
    assert "of 1 distinct prompts leaves none" in message(tmp_path / "a.jsonl", eval_fraction=0.5)


def test_a_file_that_changes_under_a_run(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(GOOD) * 1)
    prompts = load(path).train_prompts()
    path.write_text("gone")
    with pytest.raises(DataError, match="was changed while a run was reading it"):
        prompts[0]
