"""A real run of a real process, killed without warning and resumed."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import grpo_core.demo

pytest.importorskip("torch")

KILL = """
import os, signal, sqlite3, time
from grpo_core import hookimpl

class Kill:
    def __init__(self, config=None, context=None):
        self.mark = context.run_dir.parent / "killed"
        self.store = context.run_dir.parent / "trackio" / "real.db"

    def written(self):
        asked = "select count(*) from metrics where cast(metrics as text) like '%reward/mean%'"
        try:
            with sqlite3.connect(self.store, timeout=60) as store:
                return store.execute(asked).fetchone()[0]
        except sqlite3.OperationalError:  # Trackio, in a thread of its own, has not made it yet
            return 0

    @hookimpl
    def grpo_step_end(self, event):
        if event.step == 2 and not self.mark.exists():
            self.mark.touch()
            # Trackio writes every half second.
            until = time.monotonic() + 120
            while self.written() < 2 and time.monotonic() < until:
                time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGKILL)
"""
STEPS = 4


def test_after_a_kill_the_run_goes_on_in_the_same_remote_run(tmp_path: Path) -> None:
    for library in ("trackio", "wandb"):
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"{library} is not installed")
    (tmp_path / "kill.py").write_text(KILL)
    config = {
        "model": {"path": str(grpo_core.demo.checkpoint("habit"))},
        "task": {"name": "arithmetic"},
        "train": {"steps": STEPS, "prompts_per_step": 2, "group_size": 2},
        "sampling": {"max_tokens": 8},
        "rewards": ["exact-answer"],
        "savers": [],
        "evaluation": None,
        "checkpoints": {"every_steps": 1},
        "output": str(tmp_path / "run"),
        "observers": [
            {"name": "trackio", "mode": "offline", "project": "real", "every": 1},
            {"name": "wandb", "mode": "offline"},
            "kill.py:Kill",
        ],
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "grpo_core.cli", "train", "run.yaml"]
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio")}

    def start(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *more], cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    assert start().returncode == -signal.SIGKILL
    done = start("--resume")
    assert done.returncode == 0, done.stderr

    with sqlite3.connect(tmp_path / "trackio" / "real.db") as store:
        rows = store.execute("select run_id, step, metrics from metrics").fetchall()
    steps = {step for _, step, text in rows if "reward/mean" in json.loads(text)}
    assert len({run_id for run_id, _, _ in rows}) == 1
    assert steps == {*range(1, STEPS + 1)}
    parts = list((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert len(parts) == 2
    assert len({part.name.split("-")[3] for part in parts}) == 1
