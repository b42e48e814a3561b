"""Rollouts as Parquet: everything comes back, by several readers, whatever the text."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from grpo_core.hooks import Lifecycle
from grpo_core.protocols import Saver
from grpo_core.types import (
    Abstained,
    Failed,
    Prompt,
    Rollout,
    RolloutsScored,
    RunStart,
    ScoredRollouts,
    Span,
    Value,
)
from grpo_savers.config import RolloutsConfig
from grpo_savers.rollout_table import FIELDS, VERSION_KEY, WEIGHTS_KEY
from grpo_savers.rollouts import RolloutsSaver

CHAT = Prompt(
    id="train/17",
    content=({"role": "user", "content": "2 +3 mod 10=? \N{SNOWMAN}"},),
    columns={"answer": "5", "grid": np.arange(3), "raw": b"abc", "where": Path("x")},
)
ODD = Prompt(id="train/\ud800", content="half an emoji \ud83d", columns={"answer": "\ud83d"})


def sampled(ids: tuple[int, ...], start: float) -> Span:
    logprobs = tuple(-(start + i / 7) for i in range(len(ids)))
    kept = (-0.25,) * len(ids) if ids == (4,) else None
    return Span(token_ids=ids, logprobs=logprobs, policy_version=12, kept_logmass=kept)


def rollout(prompt: Prompt, sample: int, *spans: Span, **other: Any) -> Rollout:
    fields = {"prompt_ids": (1, 5), "group": 0, "text": "5", "finish_reason": "stop"} | other
    return Rollout(prompt=prompt, sample=sample, spans=spans, **fields)


def event(step: int = 12) -> RolloutsScored:
    tool = Span(token_ids=(90, 91), logprobs=None, policy_version=None)
    rollouts = (
        rollout(CHAT, 0, sampled((31, 7), 0.1), tool, sampled((2,), 0.3), extra={"calls": 1}),
        rollout(CHAT, 1, sampled((4,), 0.2), text="\ud83d", finish_reason="length"),
        rollout(ODD, 2, finish_reason="error", error="gave up \udfff", text=""),
    )
    scored = ScoredRollouts(
        providers_F=("exact-answer", "style"),
        weights_F=(1.0, 0.5),
        outcomes_F_B=(
            (Value(value=1.0), Value(value=0.0), Abstained(reason="no text")),
            (Abstained(), Failed(kind="timeout", reason="10 s"), Failed(kind="error", reason="x")),
        ),
        dropped_B=(False, True, True),
        logged_B=(
            {"exact-answer/gold": "5", "style/words": [1, "\ud83d"]},
            {},
            {"exact-answer/gold": None},
        ),
    )
    return RolloutsScored(
        step=step, rollouts_B=rollouts, scored=scored, advantages_B=[0.7, -0.7, 0.0]
    )


def started(saver: RolloutsSaver, run_dir: Path) -> Lifecycle:
    lifecycle = Lifecycle([("saver 'rollouts'", saver)])
    lifecycle.run_start(RunStart(run_dir=run_dir, steps=9, first_step=0, config={}, derived={}))
    return lifecycle


@pytest.fixture
def lifecycle(tmp_path: Path) -> Lifecycle:
    return started(RolloutsSaver(), tmp_path)


@pytest.fixture
def folder(lifecycle: Lifecycle, tmp_path: Path) -> Path:
    lifecycle.rollouts_scored(event())
    return tmp_path / "rollouts"


def test_everything_comes_back(folder: Path) -> None:
    table = pq.read_table(folder / "step-000012.parquet")
    first, second, third = table.to_pylist()
    rollouts = event().rollouts_B
    for row, was in zip((first, second, third), rollouts, strict=True):
        assert row["step"] == 12
        assert (row["group"], row["sample"]) == (was.group, was.sample)
        assert tuple(row["prompt_token_ids"]) == was.prompt_ids
        assert tuple(row["token_ids"]) == was.token_ids
        assert tuple(row["action_positions"]) == was.action_positions
        assert tuple(row["sampling_logprobs"]) == was.sampling_logprobs
        assert row["kept_logmass"] == (was.kept_logmass and list(was.kept_logmass))
        assert row["policy_version"] == was.policy_version
        assert row["finish_reason"] == was.finish_reason
    assert table["kept_logmass"].to_pylist() == [None, [-0.25], None]
    assert table["advantage"].to_pylist() == [0.7, -0.7, 0.0]
    assert json.loads(first["prompt"]) == [dict(m) for m in CHAT.content if isinstance(m, dict)]
    assert "\N{SNOWMAN}" in first["prompt"]
    assert json.loads(first["columns"]) == {
        "answer": "5",
        "grid": [0, 1, 2],
        "raw": "<3 bytes>",
        "where": "x",
    }
    assert json.loads(first["extra"]) == {"calls": 1}


def test_outcomes_keep_their_kind(folder: Path) -> None:
    table = pq.read_table(folder / "step-000012.parquet")
    assert table["reward/exact-answer"].to_pylist() == [1.0, 0.0, None]
    assert table["outcome/exact-answer"].to_pylist() == ["value", "value", "abstained"]
    assert table["reward/style"].to_pylist() == [None, None, None]
    assert table["outcome/style"].to_pylist() == ["abstained", "timeout", "error"]
    assert table["reason/style"].to_pylist() == [None, "10 s", "x"]


def test_what_was_logged_stands_in_its_row(
    folder: Path, lifecycle: Lifecycle, tmp_path: Path
) -> None:
    """And in later files, so that those of a run have the same columns."""
    table = pq.read_table(folder / "step-000012.parquet")
    assert table["dropped"].to_pylist() == [False, True, True]
    assert table["logged/exact-answer/gold"].to_pylist() == ['"5"', None, "null"]
    assert table["logged/style/words"].to_pylist() == ['[1, "\\ud83d"]', None, None]
    quiet = event(13)
    scored = replace(quiet.scored, logged_B=({}, {}, {"new/column": 1.5}))
    lifecycle.rollouts_scored(replace(quiet, scored=scored))
    later = pq.read_table(folder / "step-000013.parquet")
    assert later["logged/exact-answer/gold"].to_pylist() == [None] * 3
    assert later["logged/new/column"].to_pylist() == [None, None, "1.5"]


def test_lone_surrogates_are_written_visibly(folder: Path) -> None:
    _, second, third = pq.read_table(folder / "step-000012.parquet").to_pylist()
    assert second["completion"] == "\\ud83d"
    assert third["prompt_id"] == "train/\\ud800"
    assert third["error"] == "gave up \\udfff"
    assert json.loads(third["prompt"]) == ODD.content
    assert json.loads(third["columns"]) == {"answer": "\ud83d"}


def test_the_schema_has_a_version_and_the_weights(folder: Path) -> None:
    metadata = pq.read_schema(folder / "step-000012.parquet").metadata
    assert metadata[VERSION_KEY.encode()] == b"3"
    assert json.loads(metadata[WEIGHTS_KEY.encode()]) == {"exact-answer": 1.0, "style": 0.5}


def test_other_readers_take_the_folder(folder: Path, lifecycle: Lifecycle, tmp_path: Path) -> None:
    import datasets
    import pandas as pd

    lifecycle.rollouts_scored(event(step=13))
    (folder / ".step-000014.parquet.tmp").write_bytes(b"PAR1 cut off")
    loaded = datasets.load_dataset(
        "parquet", data_dir=str(folder), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded["step"] == [12] * 3 + [13] * 3
    assert loaded[0]["token_ids"] == [31, 7, 90, 91, 2]
    frame = pd.read_parquet(folder / "step-000012.parquet")
    assert list(frame["reward/exact-answer"].isna()) == [False, False, True]
    assert pyarrow.dataset.dataset(folder).count_rows() == 6


def test_an_error_midway_leaves_nothing(tmp_path: Path) -> None:
    """A token id that is none: found by Arrow while it builds or writes the file."""
    bad = event()
    rows = (*bad.rollouts_B[:2], rollout(CHAT, 2, sampled((2**40,), 0.0)))
    broken = RolloutsScored(
        step=0, rollouts_B=rows, scored=bad.scored, advantages_B=bad.advantages_B
    )
    with pytest.raises(Exception, match="saver 'rollouts' failed in grpo_rollouts_scored"):
        started(RolloutsSaver(), tmp_path).rollouts_scored(broken)
    assert list((tmp_path / "rollouts").iterdir()) == []


def test_every_nth_step(tmp_path: Path) -> None:
    lifecycle = started(RolloutsSaver(RolloutsConfig(every=2)), tmp_path)
    for step in range(5):
        lifecycle.rollouts_scored(event(step))
    names = sorted(path.name for path in (tmp_path / "rollouts").iterdir())
    assert names == [f"step-00000{step}.parquet" for step in (0, 2, 4)]


def test_a_step_without_rollouts_and_providers(tmp_path: Path) -> None:
    """A rank whose share was empty still writes a file of the same columns."""
    scored = ScoredRollouts(providers_F=(), weights_F=(), outcomes_F_B=())
    empty = RolloutsScored(step=0, rollouts_B=(), scored=scored, advantages_B=())
    started(RolloutsSaver(), tmp_path).rollouts_scored(empty)
    assert pq.read_table(tmp_path / "rollouts" / "step-000000.parquet").num_rows == 0


def test_it_is_a_saver_that_saves_nothing_at_the_end() -> None:
    saver = RolloutsSaver()
    assert isinstance(saver, Saver)
    assert saver.save(None) is None  # type: ignore[arg-type]


def test_the_readme_names_every_column() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    for field in FIELDS:
        assert f"`{field.name}`" in readme
