"""Stores that are this test's own; nothing reaches for a network."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest


def _load_story() -> ModuleType:
    spec = importlib.util.spec_from_file_location("story", Path(__file__).with_name("story.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["story"] = module
    spec.loader.exec_module(module)
    return module


STORY = _load_story()

# Trackio reads where its store is once, when it is imported.
_TRACKIO = tempfile.TemporaryDirectory()
os.environ["TRACKIO_DIR"] = _TRACKIO.name


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in list(os.environ):
        if name.startswith(("WANDB_", "COMET_", "MLFLOW_")):
            monkeypatch.delenv(name)
    # Configuration of the services in the home of whoever runs the tests.
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    before = set(os.environ)
    yield
    for name in set(os.environ) - before:
        del os.environ[name]


@pytest.fixture
def nothing_lost(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No observer has had anything to complain of."""
    yield
    said = caplog.get_records("call")
    assert [r.getMessage() for r in said if r.name.startswith("grpo_observers")] == []


@pytest.fixture
def make_story(tmp_path: Path) -> Callable[..., object]:
    return lambda name="run": STORY.Story(tmp_path / name)
