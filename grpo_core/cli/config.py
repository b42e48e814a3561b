"""``grpo config``: make a config, look at one, check it."""

from __future__ import annotations

import json
from importlib.resources import files as package_files
from pathlib import Path

import click

from grpo_core.builtin.text import visible
from grpo_core.cli.options import config_options, debug_option, installed, plugin_options
from grpo_core.cli.train import needs_extras
from grpo_core.errors import ConfigError

STARTERS = ("dataset", "arithmetic")
CHECKPOINT = "BUNDLED-CHECKPOINT"


@click.group()
def config() -> None:
    """Make a config, look at one, check it."""


@config.command()
@click.option("--task", type=click.Choice(STARTERS), default="dataset", show_default=True)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("grpo.yaml"),
    show_default=True,
    help="The file to write; - is standard output.",
)
@debug_option
def init(task: str, output: Path) -> None:
    """Write a commented config to start from; an existing file is never overwritten."""
    text = starter(task)
    if str(output) == "-":
        return click.echo(text, nl=False)
    try:
        with output.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(f"{output} exists already; choose another file with --output") from None
    except OSError as error:
        raise ConfigError(f"{output} cannot be written: {error}") from error
    return click.echo(f"{output}: edit it, then: grpo train {output}")


def starter(task: str) -> str:
    """The text of a starter config; its model is the bundled one where the task is."""
    text = (package_files("grpo_core.cli") / "starters" / f"{task}.yaml").read_text("utf-8")
    if CHECKPOINT in text:
        from grpo_core.demo import checkpoint

        text = text.replace(CHECKPOINT, json.dumps(str(checkpoint("habit"))))
    return text


@config.command()
@config_options
@plugin_options
@debug_option
def check(
    files: tuple[str, ...],
    sets: tuple[str, ...],
    plugin_files: tuple[str, ...],
    disabled: tuple[str, ...],
) -> None:
    """Check a config against what is installed; shows all problems at once."""
    from grpo_core.config import load_config

    resolved = load_config(files, sets, installed(plugin_files, disabled))
    parts = ", ".join(f"{c.role} {c.name}" for c in resolved.components)
    click.echo(visible(f"ok: {parts}"))


@config.command()
@config_options
@plugin_options
@click.option(
    "--probe",
    "probing",
    is_flag=True,
    help="Also load the model and say which layout, precision and threads it gets here, and why.",
)
@debug_option
def show(
    files: tuple[str, ...],
    sets: tuple[str, ...],
    plugin_files: tuple[str, ...],
    disabled: tuple[str, ...],
    probing: bool,
) -> None:
    """Print a config as YAML with every default filled in."""
    from grpo_core.cli.describe import probed, shown_yaml
    from grpo_core.config import load_config

    resolved = load_config(files, sets, installed(plugin_files, disabled))
    if not probing:
        return click.echo(shown_yaml(resolved), nl=False)
    with needs_extras():
        from grpo_core.run import probe
    return click.echo(shown_yaml(resolved) + probed(probe(resolved)))


@config.command()
@plugin_options
@debug_option
def schema(plugin_files: tuple[str, ...], disabled: tuple[str, ...]) -> None:
    """Print the JSON Schema of a config, for editors; covers what is installed."""
    from grpo_core.config import json_schema

    click.echo(json.dumps(json_schema(installed(plugin_files, disabled)), indent=2))
