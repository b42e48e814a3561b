"""Two processes and one process train the same policy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("two_ranks.py")


def launch(processes: int, model: Path, output: Path) -> list[dict[str, float]]:
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), str(model), str(output)]
    if processes > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
        command[1:1] = [*torchrun, str(processes)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    history: list[dict[str, float]] = json.loads((output / "history.json").read_text())
    return history


def test_two_processes_equal_one(tiny_model: Path, tmp_path: Path) -> None:
    one = launch(1, tiny_model, tmp_path / "one")
    two = launch(2, tiny_model, tmp_path / "two")
    for a, b in zip(one, two, strict=True):
        for name in a:
            assert a[name] == pytest.approx(b[name], rel=1e-9), name
    weights = [torch.load(tmp_path / n / "weights.pt", weights_only=True) for n in ("one", "two")]
    moved = max(float((weights[0][n] - weights[1][n]).abs().max()) for n in weights[0])
    assert moved < 1e-6
