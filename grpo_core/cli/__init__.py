"""The ``grpo`` command. Modules here import click and nothing heavier; commands import the rest."""

from __future__ import annotations


def main() -> None:
    """Entry point of the console script; ends the process with a meaningful exit code.

    0 done, 1 unexpected error, 2 config or usage, 3 plugin, 4 data, 5 weights not synced,
    6 gradients not finite, 130 interrupted; see ``grpo_core.errors``.
    """
    from grpo_core.cli.app import grpo

    # Named, so that usage lines and completion are the same under `python -m` and in tests.
    grpo(prog_name="grpo")
