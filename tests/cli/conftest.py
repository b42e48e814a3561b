"""The command as a shell runs it, and the same without a new process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from grpo_core.cli.app import grpo as group

MINIMAL = """\
model: {path: some/model}
task: arithmetic
train: {steps: 10}
rewards: [exact-answer]
"""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory, and no variables from outside."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in [n for n in os.environ if n.startswith(("GRPO_", "_GRPO_"))]:
        monkeypatch.delenv(name)
    # Without compiled files every start would compile again, and the times would mean nothing.
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)


@pytest.fixture
def config(tmp_path: Path) -> str:
    """A config that is valid with the first-party plugins."""
    (tmp_path / "run.yaml").write_text(MINIMAL)
    return "run.yaml"


@pytest.fixture
def grpo() -> Callable[..., Result]:
    """``grpo("config", "check", "run.yaml")`` in this process."""

    def run(*words: str) -> Result:
        return CliRunner().invoke(group, [*words], prog_name="grpo", catch_exceptions=False)

    return run


@pytest.fixture
def shell() -> Callable[..., subprocess.CompletedProcess[str]]:
    """``shell("--help")`` in a process of its own."""

    def run(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "grpo_core.cli", *words],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | variables,
        )

    return run
