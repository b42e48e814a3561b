"""Runs that publish themselves: real training, a real uploader process, a server on loopback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from hub_server import TOKEN, Fault

from grpo_core import load_run, train
from grpo_core.demo import checkpoint
from grpo_core.errors import ConfigError, GRPOError
from grpo_core.hooks import Lifecycle
from grpo_core.types import CheckpointSaved, RunEnd, RunStart
from grpo_savers import HubConfig, HubSaver


def config(output: Path, **hub: Any) -> dict[str, Any]:
    return {
        "model": {"path": str(checkpoint("habit")), "lora": {"r": 2}, "threads": 1},
        "task": "arithmetic",
        "rewards": ["exact-answer"],
        "train": {"steps": 2, "prompts_per_step": 1, "group_size": 2},
        "sampling": {"max_tokens": 4},
        "evaluation": None,
        "observers": ["jsonl"],
        "checkpoints": {"every_steps": 1},
        "savers": [
            {"name": "safetensors", "at_checkpoints": True},
            "rollouts",
            {"name": "hub", "repo": "me/m", "wait_minutes": 1, **hub},
        ],
        "output": str(output),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder with a final model in it, for savers alone."""
    final = tmp_path / "run" / "final"
    final.mkdir(parents=True)
    (final / "model.safetensors").write_bytes(b"weights")
    (final / "README.md").write_text("# Mine\n")
    return tmp_path / "run"


def ended(saver: HubSaver, run_dir: Path, status: Any = "finished") -> None:
    """The events of a run, as they come."""
    run = Lifecycle([("saver 'hub'", saver)])
    run.run_start(RunStart(run_dir=run_dir, steps=1, first_step=0, config={}, derived={}))
    run.checkpoint_saved(CheckpointSaved(step=1, path=run_dir / "final", kind="final"))
    run.run_end(RunEnd(run_dir=run_dir, status=status, steps_done=1))


def test_a_run_publishes_models_branches_card_and_rollouts(
    hub: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    train(load_run(config(run_dir, at_checkpoints=True, rollouts_repo="me/r")))
    repo = hub.repos["model", "me/m"]
    assert repo.private
    assert set(repo.branches) == {"main", "step-000001", "step-000002"}
    main = hub.files("me/m")
    assert {"adapter_model.safetensors", "tokenizer.json", "README.md", "curves.svg"} <= set(main)
    assert (
        main["adapter_model.safetensors"]
        == (run_dir / "final" / "adapter_model.safetensors").read_bytes()
    )
    assert f"published: {hub.endpoint}/me/m/tree/main" in capfd.readouterr().out
    data = hub.files("me/r", kind="dataset")
    assert set(data) == {"README.md", "data/step-000000.parquet", "data/step-000001.parquet"}
    assert hub.repos["dataset", "me/r"].private
    # Nothing else has left, and the token lies in no file.
    sent = b"\n".join(hub.received)
    for secret in (str(tmp_path), "exp_avg", "completion_ids", str(checkpoint("habit"))):
        assert secret.encode() not in sent, secret
    for path in run_dir.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path


def test_a_hub_that_fails_costs_the_run_nothing_and_push_does_it_later(
    hub: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.faults.append(Fault("/api/repos/create", 401, times=-1))
    run_dir = tmp_path / "run"
    result = train(load_run(config(run_dir)))
    assert result.status == "finished"
    assert "NOT PUBLISHED: 000001-final" in caplog.text
    assert f"grpo push {run_dir}" in caplog.text
    assert "hf auth login" in caplog.text
    hub.faults.clear()
    done = subprocess.run(
        [sys.executable, "-m", "grpo_core.cli", "push", str(run_dir)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"published: {hub.endpoint}/me/m/tree/main" in done.stdout
    assert "adapter_model.safetensors" in hub.files("me/m")
    assert list((run_dir / "outbox").glob("0*")) == []


def test_push_names_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config(tmp_path) | {"savers": []}))

    def push(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "grpo_core.cli", "push", str(tmp_path), *more]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = push()
    assert done.returncode == 2
    assert "no saver of this run publishes" in done.stderr
    done = push("--set", "savers=[{name: hub, repo: me/m}]")
    assert done.returncode == 2
    assert "neither final/ nor anything in outbox/" in done.stderr


def test_offline_is_said_and_nothing_is_lost(
    hub: Any, folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    ended(HubSaver(HubConfig(repo="me/m")), folder)
    assert "HF_HUB_OFFLINE is set" in caplog.text
    assert "NOT PUBLISHED" in caplog.text
    assert hub.requests == []
    assert (folder / "outbox" / "000001-final" / "files" / "model.safetensors").exists()


def test_a_slow_hub_is_waited_for_only_so_long(
    hub: Any, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.faults.append(Fault("/api/repos/create", seconds=8, times=-1))
    ended(HubSaver(HubConfig(repo="me/m", wait_minutes=0.02)), folder)
    assert "took longer than wait_minutes" in caplog.text
    assert "NOT PUBLISHED" in caplog.text


def test_a_failed_run_is_not_published(
    hub: Any, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ended(HubSaver(HubConfig(repo="me/m")), folder, status="failed")
    assert "the run failed, so final/ is not published" in caplog.text
    assert hub.requests == []


def test_what_a_killed_run_left_goes_with_the_next(hub: Any, folder: Path) -> None:
    saver = HubSaver(HubConfig(repo="me/m"))
    saver._put_model(folder, folder / "final", "step-000007")
    ended(HubSaver(HubConfig(repo="me/m")), folder)
    assert set(hub.repos["model", "me/m"].branches) == {"main", "step-000007"}


def test_whatever_goes_wrong_the_run_goes_on(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "outbox").write_text("a file where the folder should be")
    ended(HubSaver(HubConfig(repo="me/m")), folder)
    assert "the run goes on" in caplog.text


def test_push_says_why_it_failed(hub: Any, folder: Path) -> None:
    hub.faults.append(Fault("/commit/", 403, times=-1))
    with pytest.raises(GRPOError, match="write access"):
        HubSaver(HubConfig(repo="me/m", endpoint=hub.endpoint)).push(folder)
    with pytest.raises(ConfigError, match="neither"):
        HubSaver(HubConfig(repo="me/m")).push(folder / "final")


def test_a_half_written_parquet_file_stays_and_the_others_go(
    hub: Any, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import pyarrow as pa

    (folder / "rollouts").mkdir()
    pq.write_table(pa.table({"step": [1]}), folder / "rollouts" / "step-000001.parquet")
    whole = (folder / "rollouts" / "step-000001.parquet").read_bytes()
    (folder / "rollouts" / "step-000002.parquet").write_bytes(whole[: len(whole) // 2])
    config = HubConfig(repo="me/m", rollouts_repo="me/r", endpoint=hub.endpoint)
    HubSaver(config).push(folder)
    assert set(hub.files("me/r", kind="dataset")) == {"README.md", "data/step-000001.parquet"}
    assert "step-000002.parquet is left out" in caplog.text


def test_names_of_repositories() -> None:
    for bad in ("a/b/c", "../x", "/x", "a b", ""):
        with pytest.raises(ValueError, match="repo"):
            HubConfig(repo=bad)
