"""Trackio, in its store on this machine."""

from __future__ import annotations

from typing import Any

import pytest
from story import REWARDS, SECRET

from grpo_observers import Trackio, TrackioConfig

trackio = pytest.importorskip("trackio")


def logs(project: str, run: str) -> list[dict[str, Any]]:
    from trackio.sqlite_storage import SQLiteStorage

    found: list[dict[str, Any]] = SQLiteStorage.get_logs(project, run)
    return found


@pytest.mark.usefixtures("nothing_lost")
def test_what_is_sent_is_read_back(make_story: Any) -> None:
    story = make_story()
    story.play(Trackio(TrackioConfig(mode="offline", project="read-back", every=2)))
    rows = logs("read-back", "run")
    assert [(r["step"], r["reward/mean"]) for r in rows if "reward/mean" in r] == REWARDS
    assert [r["step"] for r in rows if "eval/gsm8k:greedy/exact-answer" in r] == [0, 4]
    tables = [r for r in rows if "samples/train" in r]
    assert [r["step"] for r in tables] == [1, 3]
    sent = tables[1]["samples/train"]["_value"]
    assert len(sent) == 4
    assert sent[0]["reward/exact-answer"] == 3.0
    assert sent[0]["no value"] == "judge: abstained"
    assert [r["run/steps_done"] for r in rows if "run/finished" in r] == [4]


def test_the_config_is_there_without_secrets(make_story: Any) -> None:
    from trackio.sqlite_storage import SQLiteStorage

    make_story().play(Trackio(TrackioConfig(mode="offline", project="config", group="g")))
    config = SQLiteStorage.get_run_config("config", "run")
    assert config["_Group"] == "g"
    assert config["derived"] == {"rollouts_per_step": 4, "epochs": 0.25}
    assert not any(secret in str(config) for secret in (SECRET, "s3cret", "me:pw"))


def test_a_resumed_run_goes_on_and_a_new_one_of_the_same_name_does_not(make_story: Any) -> None:
    config = TrackioConfig(mode="offline", project="resumed")
    first, second, third = Trackio(config), Trackio(config), Trackio(config)
    make_story().play(first, last=2)
    second.load_state_dict(first.state_dict())
    make_story().play(second, first=2)
    assert second.state_dict() == first.state_dict()
    rows = [r for r in logs("resumed", "run") if "reward/mean" in r]
    assert [(r["step"], r["reward/mean"]) for r in rows] == REWARDS
    make_story().play(third)
    assert third.state_dict() != first.state_dict()


def test_offline_is_offline_whatever_the_environment_says(
    make_story: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_SERVER_URL", "http://127.0.0.1:9/")
    make_story().play(Trackio(TrackioConfig(mode="offline", project="env")))
    assert len(logs("env", "run")) > 4
