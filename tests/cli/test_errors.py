"""Exit codes mean something, messages are safe to print, tracebacks come when asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest

from grpo_core import errors
from grpo_core.cli import app


def raising(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give ``grpo`` a command that raises ``error``."""

    @click.command()
    @app.debug_option
    def fail() -> None:
        raise error

    monkeypatch.setitem(app.grpo.commands, "fail", fail)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.GRPOError, 1),
        (errors.ConfigError, 2),
        (errors.UnknownComponentError, 2),
        (errors.RunExistsError, 2),
        (errors.PluginError, 3),
        (errors.RewardError, 3),
        (errors.DataError, 4),
        (errors.SyncError, 5),
        (errors.NonFiniteGradientError, 6),
        (errors.CheckpointError, 7),
        (errors.DamagedCheckpointError, 7),
    ],
)
def test_each_kind_has_its_exit_code(
    grpo, monkeypatch: pytest.MonkeyPatch, kind: type[errors.GRPOError], code: int
) -> None:
    raising(kind("what happened"), monkeypatch)
    done = grpo("fail")
    assert (done.exit_code, done.stderr, done.stdout) == (code, "Error: what happened\n", "")


def test_every_kind_is_covered() -> None:
    kinds = [e for e in vars(errors).values() if isinstance(e, type)]
    assert {e.exit_code for e in kinds if issubclass(e, errors.GRPOError)} == set(range(1, 8))


@pytest.mark.parametrize("words", [("--debug", "fail"), ("fail", "--debug")])
def test_debug_shows_the_traceback_and_keeps_the_code(
    grpo, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    raising(errors.DataError("what happened"), monkeypatch)
    done = grpo(*words)
    assert done.exit_code == 4
    assert "Traceback (most recent call last)" in done.stderr
    assert "grpo_core.errors.DataError: what happened" in done.stderr


def test_an_interrupt_before_training(grpo, monkeypatch: pytest.MonkeyPatch) -> None:
    raising(KeyboardInterrupt(), monkeypatch)
    done = grpo("fail")
    assert (done.exit_code, done.stderr) == (130, "interrupted\n")


def test_notes_are_printed_too(grpo, monkeypatch: pytest.MonkeyPatch) -> None:
    error = errors.GRPOError("the first thing")
    error.add_note("and the second")
    raising(error, monkeypatch)
    assert grpo("fail").stderr == "Error: the first thing\nand the second\n"


def test_an_unexpected_error_keeps_its_traceback() -> None:
    code = (
        "import sys; from grpo_core.cli import app, config\n"
        "config.starter = lambda task: 1 / 0\n"
        "sys.argv = ['grpo', 'config', 'init']; from grpo_core.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ZeroDivisionError" in done.stderr


def test_usage_errors_are_config_errors(grpo) -> None:
    for words in (["train"], ["train", "--stets", "3"], ["plugins", "show"], ["trian"]):
        done = grpo(*words)
        assert done.exit_code == 2
        assert "Usage: grpo" in done.stderr


def test_nothing_in_a_config_can_steer_the_terminal(grpo) -> None:
    nasty = "\x1b]0;owned\x07\x1b[2J[bold]\u202egnp.exe"
    Path("run.yaml").write_text(
        f"model: {{path: m}}\ntrain: {{steps: 1}}\ntask: {ascii(nasty)[1:-1]!r}\n"
    )
    Path("nasty.yaml").write_bytes(
        b'model: {path: "\\e]0;owned\\a\\u202e[bold]"}\ntrain: {steps: 1}\ntask: arithmetic\n'
        b'rewards: ["\\e[2Jx"]\n"\\e[31mkey": 1\n'
    )
    for words in (
        ("config", "check", "run.yaml"),
        ("config", "check", "nasty.yaml"),
        ("config", "show", "nasty.yaml", "--set", "rewards=[exact-answer]"),
        ("train", "--dry-run", "nasty.yaml", "--set", "rewards=[exact-answer]"),
        ("plugins", "show", nasty),
        ("train", nasty),
    ):
        done = grpo(*words)
        shown = done.stdout + done.stderr
        assert not [c for c in shown if not c.isprintable() and c != "\n"], (words, shown)
    # Square brackets are text, not markup.
    assert "[bold]" in grpo("plugins", "show", nasty).stderr


def test_what_is_shown_of_odd_text_still_says_the_same(grpo) -> None:
    Path("odd.yaml").write_bytes(
        b'model: {path: "a\\u202eb \\x85 c"}\ntrain: {steps: 1}\ntask: arithmetic\n'
    )
    done = grpo("config", "show", "odd.yaml")
    Path("again.yaml").write_text(done.stdout)
    assert grpo("config", "show", "again.yaml").stdout == done.stdout
    assert '"a\\u202Eb \\N c"' in done.stdout


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m grpo_core.cli config schema | head -c 10"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ('{\n  "$sche', "")
