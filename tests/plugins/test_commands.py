"""Commands that plugins bring: found, listed without being imported, and no danger to the rest."""

from __future__ import annotations

import subprocess
import sys

from click.testing import CliRunner

from grpo_core.cli.app import grpo

OFFER = """\
from grpo_core import hookimpl

@hookimpl
def grpo_register_commands(register):
    register({name!r}, {target!r}, summary="From a plugin.")
"""


def offer(name: str = "greet", target: str = "nowhere.at.all:command") -> str:
    return OFFER.format(name=name, target=target)


def test_a_plugins_command_runs_and_is_listed(fake_plugin) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "grpo_core.cli", "fake-greet", "--name", "you two"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "hello you two\n"
    listed = CliRunner().invoke(grpo, ["--help"]).output
    assert "fake-greet  Say hello." in " ".join(listed.split()).replace(
        "fake-greet ", "fake-greet  "
    )
    assert "Usage: grpo fake-greet" in CliRunner().invoke(grpo, ["fake-greet", "--help"]).output


def test_a_broken_command_breaks_only_itself(distribution) -> None:
    distribution("grpo-mine", offer())
    listed = CliRunner().invoke(grpo, ["--help"])
    assert listed.exit_code == 0
    assert "greet" in listed.output
    assert CliRunner().invoke(grpo, ["train", "--help"]).exit_code == 0
    done = CliRunner().invoke(grpo, ["greet"])
    assert done.exit_code == 3
    assert "command 'greet' of grpo-mine" in done.output
    assert "cannot be imported from 'nowhere.at.all:command'" in done.output


def test_two_commands_of_one_name(distribution) -> None:
    distribution("grpo-left", offer())
    distribution("grpo-right", offer())
    done = CliRunner().invoke(grpo, ["greet"])
    assert done.exit_code == 2
    assert "offered by grpo-left" in done.output
    assert "grpo-right" in done.output
    assert "GRPO_DISABLE_PLUGINS=grpo-left" in done.output


def test_no_plugin_replaces_a_command_of_grpo(distribution) -> None:
    distribution("grpo-mine", offer("train"))
    done = CliRunner().invoke(grpo, ["train", "--help"])
    assert done.exit_code == 0
    assert "Train as CONFIG says" in done.output


def test_what_is_no_command(distribution) -> None:
    distribution("grpo-mine", offer(target="os:getcwd"))
    assert "is no click command" in CliRunner().invoke(grpo, ["greet"]).output


def test_an_unknown_command_is_still_unknown() -> None:
    done = CliRunner().invoke(grpo, ["tarin"])
    assert done.exit_code == 2
    assert "No such command 'tarin'" in done.output
