"""W&B, offline: what is read back is what `wandb sync` would upload."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from story import REWARDS, SECRET

from grpo_observers import Wandb, WandbConfig

pytest.importorskip("wandb")

BLOCK = 32768


def records(folder: Path) -> list[Any]:
    """All records of a run, once its last one is on the disk: W&B's own process writes it."""
    until = time.monotonic() + 120
    while True:
        found = list(parsed(folder))
        if found and found[-1].WhichOneof("record_type") in ("exit", "final", "footer"):
            return found
        assert time.monotonic() < until, [r.WhichOneof("record_type") for r in found]
        time.sleep(0.05)


def parsed(folder: Path) -> Iterator[Any]:
    """The records that are there: a LevelDB log after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("*.wandb")
    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = BLOCK - at % BLOCK
        if left < 7:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        if len(data) < at + 7 + size:  # its process is in the middle of writing it
            return
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""


def history(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run; what has parts, such as a table, is a dict of them."""
    rows = []
    for record in records(folder):
        if record.WhichOneof("record_type") != "history":
            continue
        row: dict[str, Any] = {}
        for item in record.history.item:
            *parents, name = list(item.nested_key) or [item.key]
            inner = row
            for parent in parents:
                inner = inner.setdefault(parent, {})
            inner[name] = json.loads(item.value_json)
        rows.append(row)
    return rows


def folders(run_dir: Path) -> list[Path]:
    return sorted((run_dir / "wandb").glob("offline-run-*"))


@pytest.mark.usefixtures("nothing_lost")
def test_what_is_sent_is_read_back(make_story: Any, capsys: Any) -> None:
    story = make_story()
    observer = Wandb(WandbConfig(mode="offline", tags=("a",), every=2))
    story.play(observer)
    (folder,) = folders(story.run_dir)
    rows = history(folder)
    assert [(r["step"], r["reward/mean"]) for r in rows if "reward/mean" in r] == REWARDS
    assert [r["step"] for r in rows if "eval/gsm8k:greedy/exact-answer" in r] == [0, 4]
    tables = [r for r in rows if "samples/train" in r]
    assert [r["step"] for r in tables] == [1, 3]
    sent = json.loads((folder / "files" / tables[1]["samples/train"]["path"]).read_text())
    assert len(sent["data"]) == 4
    assert {row[0] for row in sent["data"]} == {3}
    runs = [r.run for r in records(folder) if r.WhichOneof("record_type") == "run"]
    assert (runs[0].project, runs[0].display_name, list(runs[0].tags)) == (
        "grpo-core",
        "run",
        ["a"],
    )
    config = {u.key: json.loads(u.value_json) for u in runs[0].config.update}
    assert config["derived"] == {"rollouts_per_step": 4, "epochs": 0.25}
    assert config["config"]["rewards"][0]["api_key"] == "(hidden)"
    assert f"wandb sync {story.run_dir}" in capsys.readouterr().out


def test_no_secret_and_nothing_of_the_machine_is_recorded(
    make_story: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_TOKEN", "environment-value")
    monkeypatch.setattr("sys.argv", ["grpo", "--set", "x=argument-value"])
    story = make_story()
    story.play(Wandb(WandbConfig(mode="offline")))
    (folder,) = folders(story.run_dir)
    runs = [r.run for r in records(folder) if r.WhichOneof("record_type") == "run"]
    names = {path.name for path in (folder / "files").rglob("*")}
    assert not names & {"requirements.txt", "wandb-metadata.json", "output.log", "diff.patch"}
    assert {run.host for run in runs} == {""}
    written = b"".join(p.read_bytes() for p in folder.rglob("*") if p.is_file())
    assert b"rollouts_per_step" in written
    for secret in (SECRET, "s3cret", "me:pw", "environment-value", "argument-value"):
        assert secret.encode() not in written, secret


def test_a_resumed_run_has_the_same_id_and_a_failed_one_says_so(make_story: Any) -> None:
    story = make_story()
    first = Wandb(WandbConfig(mode="offline"))
    story.play(first, last=2, status="failed", error="OSError: x")
    second = Wandb(WandbConfig(mode="offline"))
    second.load_state_dict(first.state_dict())
    story.play(second, first=2)
    parts = folders(story.run_dir)
    assert len(parts) == 2
    identity = first.state_dict()["run"]["id"]
    runs = [r.run for p in parts for r in records(p) if r.WhichOneof("record_type") == "run"]
    assert {run.run_id for run in runs} == {identity}
    assert [p for p in parts if p.match(f"offline-run-*-{identity}*")] == parts
    by_part = [[r["step"] for r in history(p) if "reward/mean" in r] for p in parts]
    assert sorted(by_part) == [[1, 2], [3, 4]]
    codes = [
        [r.exit.exit_code for r in records(p) if r.WhichOneof("record_type") == "exit"]
        for p in parts
    ]
    assert sorted(codes) == [[0], [1]]


def test_without_a_key_nobody_is_asked(make_story: Any, caplog: Any) -> None:
    story = make_story()
    story.play(Wandb(WandbConfig(timeout=5)))
    assert "there is no API key (`wandb login`, or WANDB_API_KEY)" in caplog.text
    assert len(folders(story.run_dir)) == 1
