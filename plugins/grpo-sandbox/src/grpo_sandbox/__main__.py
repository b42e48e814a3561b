"""``python -m grpo_sandbox run FILE``: try the sandbox; stdin, stdout and stderr are passed on."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from grpo_core.errors import GRPOError
from grpo_sandbox.local import LocalExecutor
from grpo_sandbox.running import run_python


@click.group()
def main() -> None:
    """Model-written code, isolated."""


@main.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--unsafe", is_flag=True, help="Also where this machine permits no isolation.")
def run(file: Path, unsafe: bool) -> None:
    """Run FILE in a box of its own."""
    stdin = "" if sys.stdin.isatty() else sys.stdin.read()
    try:
        executor = LocalExecutor(unsafe=unsafe)
        finished = run_python(file.read_text("utf-8"), stdin=stdin, executor=executor)
    except GRPOError as error:
        raise click.ClickException(str(error)) from error
    sys.stdout.buffer.write(finished.stdout)
    sys.stdout.flush()
    sys.stderr.buffer.write(finished.stderr)
    click.echo(f"[{finished.summary()}; {executor.describe()}]", err=True)
    sys.exit(finished.code if finished.code is not None else 1)


@main.command()
def describe() -> None:
    """Say what isolates programs on this machine."""
    try:
        click.echo(LocalExecutor().describe())
    except GRPOError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
