"""``grpo train``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from grpo_core.cli.logs import show_logs
from grpo_core.cli.options import (
    config_options,
    debug_option,
    installed,
    override,
    plugin_options,
)
from grpo_core.errors import ConfigError, RunExistsError

if TYPE_CHECKING:
    from grpo_core.config import ResolvedConfig

INTERRUPTED = 130
"""128 + SIGINT, as shells report it."""


def _no_config(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    # `--resume run.yaml` would take the config for a checkpoint, and miss a config.
    if value is not None and Path(value).is_file():
        raise click.BadParameter(
            f"{value!r} is a file, not a checkpoint; put --resume behind CONFIG: "
            f"grpo train {value} --resume"
        )
    return value


@click.command()
@config_options
@plugin_options
@click.option("--dry-run", is_flag=True, help="Show what would be run, and touch nothing.")
@click.option("-o", "--output", metavar="DIR", help="The run's folder; it must not hold a run.")
@click.option(
    "--resume",
    metavar="[CHECKPOINT]",
    is_flag=False,
    flag_value="newest",
    callback=_no_config,
    help="Go on with the run in its folder, from the newest whole checkpoint or from a named one "
    "(step-000040); from the beginning when it has none yet. Stands behind CONFIG.",
)
@click.option(
    "--resume-changed",
    is_flag=True,
    help="Resume although settings, data or plugins are not those of the checkpoint.",
)
@debug_option
def train(
    files: tuple[str, ...],
    sets: tuple[str, ...],
    plugin_files: tuple[str, ...],
    disabled: tuple[str, ...],
    dry_run: bool,
    output: str | None,
    resume: str | None,
    resume_changed: bool,
) -> None:
    """Train as CONFIG says; of several files the later ones win.

    \b
    grpo train run.yaml --set loss=grpo --set train.steps=200
    """
    from grpo_core.config import load_config

    if output is not None:
        sets = (*sets, override("output", output))
    resolved = load_config(files, sets, installed(plugin_files, disabled))
    resume = resume or ("newest" if resume_changed else None)
    start(resolved, dry_run=dry_run, resume=resume, accept_changes=resume_changed)


@contextmanager
def needs_extras() -> Iterator[None]:
    """Around imports that need a model's libraries, which a plugin author may not have.

    Raises:
        ConfigError: they are not installed.
    """
    try:
        yield
        from transformers.utils import logging
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "grpo_core":
            raise
        raise ConfigError(
            f"this needs {error.name}, which is not installed: pip install 'grpo-core[hf]'"
        ) from error
    # Bars for weights that load in a second would stand in the middle of the run's own display.
    logging.disable_progress_bar()


def start(
    resolved: ResolvedConfig,
    *,
    dry_run: bool = False,
    resume: str | None = None,
    accept_changes: bool = False,
) -> None:
    """Run a checked config to its end, or describe it.

    Raises:
        RunExistsError: its folder already holds a run; said before a model is loaded.
        ConfigError: the packages that training needs are not installed.
    """
    folder = Path(resolved.config.output)
    # Under torchrun only the first rank may look: it may be writing while the others start.
    if resume is None and os.environ.get("RANK", "0") == "0" and (folder / "config.yaml").exists():
        raise RunExistsError(
            f"output folder {str(folder)!r} already holds a run; go on with it by --resume, choose "
            "another with --output, or move the old one away"
        )
    if dry_run:
        from grpo_core.cli.describe import description

        return click.echo(description(resolved))
    show_logs()
    with needs_extras():
        from grpo_core.run import build_run
        from grpo_core.trainer import train as run_to_end
    result = run_to_end(build_run(resolved), resume=resume, accept_changes=accept_changes)
    if result.status == "interrupted":
        click.get_current_context().exit(INTERRUPTED)
    return None
