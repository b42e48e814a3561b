"""Help of every command: complete, and at once."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from grpo_core import __version__
from grpo_core.cli.app import grpo as group

BUDGET = 0.5
"""CPU seconds, user and system. Importing torch alone takes several times as long."""

HEAVY = ["torch", "transformers", "pydantic", "numpy", "yaml", "rich", "datasets", "pyarrow"]


def commands(command: click.Command, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield words
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from commands(inner, (*words, name))


ALL = list(commands(group))


def cpu_seconds(*words: str) -> tuple[float, str]:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "grpo_core.cli", *words], capture_output=True, text=True, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return spent, done.stdout


def test_there_is_every_command() -> None:
    assert {" ".join(words) for words in ALL} == {
        "",
        "train",
        "demo",
        "plugins",
        "plugins list",
        "plugins show",
        "plugins new",
        "preview",
        "config",
        "config init",
        "config check",
        "config show",
        "config schema",
        "eval",
        "push",
    }


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_help_answers_at_once(words: tuple[str, ...]) -> None:
    # The better of two: the first start of a fresh checkout compiles every module.
    (first, text), (second, _) = cpu_seconds(*words, "--help"), cpu_seconds(*words, "-h")
    assert min(first, second) < BUDGET
    assert text.startswith(f"Usage: {' '.join(['grpo', *words])} ")


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_help_imports_nothing_heavy(words: tuple[str, ...]) -> None:
    code = (
        "import sys; from grpo_core.cli import main; sys.argv = ['grpo', *sys.argv[1:], '--help']\n"
        "try: main()\n"
        f"finally: print('heavy:', [n for n in {HEAVY} if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("heavy: []\n")


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_every_option_and_command_is_described(words: tuple[str, ...]) -> None:
    command: click.Command = group
    for word in words:
        assert isinstance(command, click.Group)
        command = command.commands[word]
    assert command.help
    for param in command.params:
        described = isinstance(param, click.Argument) or param.help or param.name in SELF_EVIDENT
        assert described, f"{words}: {param.name}"


SELF_EVIDENT = {"seed", "task"}


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_version(grpo, flag: str) -> None:
    assert grpo(flag).output == f"grpo-core {__version__}\n"


def test_the_console_script_is_installed(shell) -> None:
    script = os.path.join(os.path.dirname(sys.executable), "grpo")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == shell("--version").stdout
