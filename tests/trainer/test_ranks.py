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


def launch(
    processes: int,
    model: Path,
    output: Path,
    loss: str,
    dynamic: dict[str, int] | None,
    checkpoints: str = "",
) -> list[dict[str, float]]:
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), str(model), str(output), loss, json.dumps(dynamic)]
    command.append(checkpoints)
    if processes > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
        command[1:1] = [*torchrun, str(processes)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if checkpoints == "fail":
        assert "power cut" in done.stderr
        return []
    assert done.returncode == 0, done.stderr[-3000:]
    history: list[dict[str, float]] = json.loads((output / "history.json").read_text())
    return history


@pytest.mark.parametrize(
    ("loss", "dynamic"),
    [
        ("plain", None),
        ("plain", {"max_rounds": 6}),
        ("terms", None),
        ("ahead", None),
        ("ahead", {"max_rounds": 6}),
    ],
)
def test_two_processes_equal_one(
    tiny_model: Path, tmp_path: Path, loss: str, dynamic: dict[str, int] | None
) -> None:
    one = launch(1, tiny_model, tmp_path / "one", loss, dynamic)
    two = launch(2, tiny_model, tmp_path / "two", loss, dynamic)
    # Else nothing would show that ranks fill their places together.
    assert dynamic is None or max(step["sampling/rounds"] for step in one) > 2
    for a, b in zip(one, two, strict=True):
        for name in a:
            assert a[name] == pytest.approx(b[name], rel=1e-9), name
    weights = [torch.load(tmp_path / n / "weights.pt", weights_only=True) for n in ("one", "two")]
    moved = max(float((weights[0][n] - weights[1][n]).abs().max()) for n in weights[0])
    assert moved < 1e-6


def test_two_processes_balance_experts_as_one_does(mixture: Path, tmp_path: Path) -> None:
    one = launch(1, mixture, tmp_path / "one", "router", None)
    two = launch(2, mixture, tmp_path / "two", "router", None)
    for a, b in zip(one, two, strict=True):
        assert a["loss/router_balance"] > 2
        for name in a:
            assert a[name] == pytest.approx(b[name], rel=1e-6), name
    weights = [torch.load(tmp_path / n / "weights.pt", weights_only=True) for n in ("one", "two")]
    moved = max(float((weights[0][n] - weights[1][n]).abs().max()) for n in weights[0])
    assert moved < 1e-6


@pytest.mark.slow
def test_two_processes_resume_with_what_each_had(tiny_model: Path, tmp_path: Path) -> None:
    dynamic = {"max_rounds": 1, "replay_groups": 8}
    whole = launch(2, tiny_model, tmp_path / "whole", "plain", dynamic, "write")
    # Else what each process has of its own would not matter.
    assert whole[1]["sampling/groups_replayed"] > 0
    launch(2, tiny_model, tmp_path / "stopped", "plain", dynamic, "fail")
    resumed = launch(2, tiny_model, tmp_path / "stopped", "plain", dynamic, "resume")
    assert resumed == whole
    folders = [tmp_path / n for n in ("whole", "stopped")]
    one, other = (torch.load(folder / "weights.pt", weights_only=True) for folder in folders)
    for name, weight in one.items():
        assert torch.equal(weight, other[name]), name
