"""The suite for plugins, on the core itself, and on plugins that break one promise each."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from grpo_core.errors import GRPOError
from grpo_core.testing import PluginSuite


class TestCore(PluginSuite):
    distribution = "grpo-core"
    package = "grpo_core"

    options = {"scripted": {"completions": ("x",)}}

    def registrations(self):
        # A task is built from data that there must be.
        return [r for r in super().registrations() if r.name not in ("dataset", "mixture")]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], PluginSuite]:
    """A distribution ``odd`` whose registration module has the given text."""

    def install(text: str) -> PluginSuite:
        (tmp_path / "odd.py").write_text(text)
        info = tmp_path / "odd-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[grpo_core]\nodd = odd\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.delitem(sys.modules, "odd", raising=False)

        class Suite(PluginSuite):
            distribution = "odd"
            package = "odd"

        return Suite()

    yield install
    sys.modules.pop("odd", None)


REGISTER = """\
{before}
from grpo_core import hookimpl

@hookimpl
def grpo_register_losses(register):
    register("{name}", "odd:{target}", summary="{summary}")

class Loss:
    def __call__(self, tokens): ...

class NoLoss: ...
"""


def text(**changes: str) -> str:
    parts = {"before": "", "name": "odd", "target": "Loss", "summary": "Odd.", **changes}
    return REGISTER.format(**parts)


def run(suite: PluginSuite) -> None:
    for name in dir(suite):
        if name.startswith("test_"):
            getattr(suite, name)()


def test_a_sound_plugin_passes(installed: Callable[[str], PluginSuite]) -> None:
    run(installed(text()))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (text(summary=""), "odd"),
        (text(target="NoLoss"), "Registration"),
        (text(target="Absent"), "cannot be imported"),
        (text(name="dapo"), "is offered by"),
        (text(before="import torch"), "torch"),
        (text(before="import no_such_module"), "cannot be loaded"),
        ("", "entry point"),
    ],
)
def test_a_broken_promise_is_found(
    installed: Callable[[str], PluginSuite], source: str, words: str
) -> None:
    suite = installed(source)
    with pytest.raises((AssertionError, GRPOError), match=words):
        run(suite)
