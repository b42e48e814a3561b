"""``grpo push``."""

from __future__ import annotations

from pathlib import Path

import click

from grpo_core.cli.options import debug_option, installed, plugin_options
from grpo_core.errors import ConfigError


@click.command()
@click.argument(
    "run_dir", metavar="RUN_DIR", type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option(
    "--set",
    "sets",
    metavar="KEY=VALUE",
    multiple=True,
    help="Override a value of the run's config, e.g. 'savers=[{name: hub, repo: me/model}]'.",
)
@plugin_options
@debug_option
def push(
    run_dir: Path, sets: tuple[str, ...], plugin_files: tuple[str, ...], disabled: tuple[str, ...]
) -> None:
    """Publish what a run wrote, by the savers of its config.

    For a run that was offline, whose upload failed, or that was not to be published at first. What
    has arrived already is not sent again.
    """
    from grpo_core.config import load_config
    from grpo_core.plugins import build
    from grpo_core.protocols import BuildContext

    if not (run_dir / "config.yaml").is_file():
        raise ConfigError(f"{str(run_dir)!r} is no run folder: it holds no config.yaml")
    resolved = load_config((run_dir / "config.yaml",), sets, installed(plugin_files, disabled))
    found = False
    for component in resolved.all("saver"):
        context = BuildContext(
            role="saver",
            name=component.name,
            seed=resolved.config.train.seed,
            run_dir=run_dir,
        )
        saver = build(component.registration, component.options, context)
        if hasattr(saver, "push"):
            found = True
            for address in saver.push(run_dir):
                click.echo(f"published: {address}")
    if not found:
        raise ConfigError(
            "no saver of this run publishes; name one: --set 'savers=[{name: hub, repo: me/model}]'"
        )
