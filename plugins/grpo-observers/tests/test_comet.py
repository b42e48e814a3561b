"""Comet, offline: what is read back is what `comet upload` would upload."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from story import REWARDS, SECRET

from grpo_observers import Comet, CometConfig

pytest.importorskip("comet_ml")


def archives(run_dir: Path) -> list[zipfile.ZipFile]:
    return [zipfile.ZipFile(path) for path in sorted((run_dir / "comet").glob("*.zip"))]


def messages(archive: zipfile.ZipFile) -> list[dict[str, Any]]:
    return [json.loads(line) for line in archive.read("messages.json").splitlines()]


def rewards(archive: zipfile.ZipFile) -> list[tuple[int, float]]:
    found = [m["payload"]["metric"] for m in messages(archive) if m["type"] == "metric_msg"]
    return [(m["step"], m["metricValue"]) for m in found if m["metricName"] == "reward/mean"]


@pytest.mark.usefixtures("nothing_lost")
def test_what_is_sent_is_read_back(make_story: Any, capsys: Any) -> None:
    story = make_story()
    story.play(Comet(CometConfig(mode="offline", tags=("a",), every=2)))
    (archive,) = archives(story.run_dir)
    assert rewards(archive) == REWARDS
    assets = {
        m["payload"]["additional_params"]["fileName"]: archive.read(m["payload"]["file_path"])
        for m in messages(archive)
        if m["type"] == "file_upload"
    }
    tables = sorted(name for name in assets if name.startswith("samples/train"))
    assert tables == ["samples/train/step-000001.csv", "samples/train/step-000003.csv"]
    rows = list(csv.DictReader(io.StringIO(assets[tables[1]].decode())))
    assert [r["reward/exact-answer"] for r in rows] == ["3.0", "2.0", "1.0", "0.0"]
    assert rows[0]["no value"] == "judge: abstained"
    others = {
        m["payload"]["key"]: m["payload"]["value"]
        for m in messages(archive)
        if m["type"] == "log_other"
    }
    assert (others["status"], others["steps_done"], others["Name"]) == ("finished", 4, "run")
    assert f"comet upload {story.run_dir}" in capsys.readouterr().out


def test_no_secret_and_nothing_of_the_machine_is_recorded(
    make_story: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_TOKEN", "environment-value")
    monkeypatch.setattr("sys.argv", ["grpo", "--set", "x=argument-value"])
    story = make_story()
    story.play(Comet(CometConfig(mode="offline")))
    (archive,) = archives(story.run_dir)
    written = b"".join(archive.read(name) for name in archive.namelist())
    assert b"rollouts_per_step" in written
    for secret in (SECRET, "s3cret", "me:pw", "environment-value", "argument-value"):
        assert secret.encode() not in written, secret
    assert not {m["type"] for m in messages(archive)} & {"system_details", "git_metadata"}


def test_a_resumed_run_has_the_same_key(make_story: Any) -> None:
    story = make_story()
    first, second = (Comet(CometConfig(mode="offline")) for _ in range(2))
    story.play(first, last=2)
    second.load_state_dict(first.state_dict())
    story.play(second, first=2)
    parts = archives(story.run_dir)
    keys = [json.loads(a.read("experiment.json"))["offline_id"] for a in parts]
    assert keys == [first.state_dict()["run"]["id"]] * 2
    assert sorted(step for a in parts for step, _ in rewards(a)) == [1, 2, 3, 4]


def test_without_a_key_it_records_offline(make_story: Any, caplog: Any) -> None:
    story = make_story()
    story.play(Comet(CometConfig(timeout=5)))
    assert "there is no API key (`comet login`, or COMET_API_KEY)" in caplog.text
    assert len(archives(story.run_dir)) == 1
