"""Options that several commands have, and what they lead to."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from grpo_core.cli.completion import complete_plugins
from grpo_core.errors import ConfigError

if TYPE_CHECKING:
    from grpo_core.plugins import Registry

Command = TypeVar("Command", bound=Callable[..., Any])

DEBUG = "grpo_core.debug"
STRICT_VARIABLE = "GRPO_STRICT_PLUGINS"
"""Set to 1 (in CI, say), every broken plugin is an error, also one that no config names."""


def _remember(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    # `meta` is shared by nested contexts, so the option works before and after the command.
    if value:
        ctx.meta[DEBUG] = True


debug_option = click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_remember,
    help="Show the traceback of every error.",
)


def config_options(command: Command) -> Command:
    """``CONFIG...`` and ``--set``, as ``files`` and ``sets``."""
    command = click.option(
        "--set",
        "sets",
        metavar="KEY=VALUE",
        multiple=True,
        help="Override a value, e.g. train.steps=100, loss=grpo, rewards.0.weight=2.",
    )(command)
    return click.argument("files", metavar="CONFIG...", nargs=-1, required=True, type=click.Path())(
        command
    )


def plugin_options(command: Command) -> Command:
    """``--plugin`` and ``--disable-plugin``, as ``plugin_files`` and ``disabled``."""
    command = click.option(
        "--disable-plugin",
        "disabled",
        metavar="NAME",
        multiple=True,
        shell_complete=complete_plugins,
        help="Leave an installed plugin out ('*': all but the core).",
    )(command)
    return click.option(
        "--plugin",
        "plugin_files",
        metavar="FILE",
        multiple=True,
        type=click.Path(),
        help="Load a .py file with registration hooks.",
    )(command)


def installed(plugin_files: Sequence[str], disabled: Sequence[str]) -> Registry:
    """What can be named, after ``--plugin`` and ``--disable-plugin``.

    Raises:
        ConfigError: a file cannot be loaded, or a name to disable is not installed.
        PluginError: a plugin is broken and ``GRPO_STRICT_PLUGINS`` is 1.
    """
    from grpo_core.plugins import Registry
    from grpo_core.plugins.registry import require_sound

    registry = Registry.installed(files=plugin_files, disable=disabled)
    found = {n for s in registry.discovery.disabled for n in (s.plugin, s.distribution)}
    for name in disabled:
        # A misspelt name would leave the plugin on that somebody wanted off.
        if name != "*" and name not in found:
            others = sorted({s.plugin for s in registry.discovery.plugins} - set(plugin_files))
            raise ConfigError(
                f"--disable-plugin {name}: no such plugin can be left out. "
                f"Loaded: {', '.join(others)}."
            )
    if os.environ.get(STRICT_VARIABLE, "0") not in ("", "0"):
        require_sound(registry)
    return registry


def override(key: str, value: object) -> str:
    """``key=value`` for ``load_config``, whatever characters the value holds."""
    return f"{key}={json.dumps(value)}"
