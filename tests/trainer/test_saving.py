"""When savers are asked, and what becomes of a run whose savers fail."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from grpo_core import Run, train
from grpo_core.demo import checkpoint
from grpo_core.errors import PluginError
from grpo_core.hookspecs import hookimpl
from grpo_core.settings import CheckpointSettings
from grpo_core.testing.saver_suite import contents, file_size_limit
from grpo_core.trainer.saving import MAX_FAILED
from grpo_savers import SafetensorsConfig, SafetensorsSaver

MakeRun = Callable[..., Run]


class Listed:
    """Remembers what it is asked, and fails when told to."""

    def __init__(self, *failing: int) -> None:
        self.failing = failing
        self.asked: list[tuple[str, int]] = []
        self.saved: list[tuple[str, str]] = []

    def save(self, request: Any) -> Path | None:
        self.asked.append((request.kind, request.step))
        if request.step in self.failing and request.kind == "checkpoint":
            raise OSError(28, "No space left on device")
        return request.run_dir / f"{request.kind}-{request.step}"

    @hookimpl
    def grpo_checkpoint_saved(self, event: Any) -> None:
        self.saved.append((event.kind, event.path.name))


def every_step(**other: Any) -> dict[str, Any]:
    return {"checkpoints": CheckpointSettings(every_steps=1, every_minutes=0), **other}


def test_after_each_checkpoint_and_at_the_end(make_run: MakeRun) -> None:
    saver = Listed()
    train(make_run(savers=[saver], **every_step()))
    assert saver.asked == [("checkpoint", 1), ("checkpoint", 2), ("final", 2)]
    assert saver.saved == [
        ("checkpoint", "step-000001"),
        ("model", "checkpoint-1"),
        ("checkpoint", "step-000002"),
        ("model", "checkpoint-2"),
        ("final", "final-2"),
    ]


def test_a_saver_that_fails_at_a_checkpoint_costs_neither_run_nor_others(
    make_run: MakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    failing, other = Listed(1), Listed()
    result = train(make_run(savers=[failing, other], **every_step()))
    assert result.status == "finished"
    assert "saver Listed failed in save: OSError" in caplog.text
    assert other.asked == failing.asked


def test_one_that_always_fails_stops_the_run(make_run: MakeRun) -> None:
    saver = Listed(*range(9))
    with pytest.raises(PluginError, match="Listed failed in save"):
        train(make_run(savers=[saver], **every_step(train={"steps": 5})))
    assert saver.asked == [("checkpoint", i + 1) for i in range(MAX_FAILED)] + [("final", 3)]


def test_a_full_disk_at_the_end_says_so_and_keeps_the_checkpoint(
    make_run: MakeRun, tmp_path: Path
) -> None:
    class Filler(SafetensorsSaver):
        def save(self, request: Any) -> Path | None:
            with file_size_limit(20_000):
                return super().save(request)

    saver = Filler(SafetensorsConfig(at_checkpoints=True))
    with pytest.raises(PluginError, match="Filler failed in save"):
        train(make_run(savers=[saver], **every_step()))
    assert not (tmp_path / "run" / "final").exists()
    assert not list((tmp_path / "run" / "models").glob("*"))
    assert (tmp_path / "run" / "checkpoints" / "step-000002" / "index.json").exists()
    # With room again, the checkpoint becomes the model.
    again = make_run(savers=[SafetensorsSaver()], **every_step())
    assert train(again, resume="newest").status == "finished"
    assert (tmp_path / "run" / "final" / "model.safetensors").exists()


def test_sigterm_twice_leaves_all_or_nothing_and_a_run_that_resumes(tmp_path: Path) -> None:
    config = {
        "model": {"path": str(checkpoint("habit")), "threads": 1},
        "task": "arithmetic",
        "rewards": ["exact-answer"],
        "train": {"steps": 500, "prompts_per_step": 1, "group_size": 2},
        "sampling": {"max_tokens": 4},
        "evaluation": None,
        "observers": ["jsonl"],
        "savers": ["safetensors"],
        "checkpoints": {"every_steps": 1},
        "output": str(tmp_path / "run"),
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "grpo_core.cli", "train", str(tmp_path / "run.yaml")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 300
        while not list((tmp_path / "run").glob("checkpoints/step-*/index.json")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGTERM)
        time.sleep(0.05)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(timeout=300) != 0
    finally:
        process.kill()
        process.wait()
    final = contents(tmp_path / "run" / "final")
    assert not final or {"model.safetensors", "config.json", "README.md"} <= set(final)
    more = ["--resume", "--resume-changed", "--set", "train.steps=1"]
    steps = max(int(p.name[5:]) for p in (tmp_path / "run" / "checkpoints").glob("step-*"))
    more[-1] = f"train.steps={steps + 1}"
    done = subprocess.run([*command, *more], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "model.safetensors" in contents(tmp_path / "run" / "final")
