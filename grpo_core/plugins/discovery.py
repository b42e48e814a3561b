"""Find what is installed. A plugin that cannot be loaded is listed, and hurts nobody else."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType

from grpo_core.errors import ConfigError
from grpo_core.hooks import call_registration
from grpo_core.plugins.registrar import (
    COMMANDS_HOOK,
    ROLES,
    CommandOffer,
    CommandRegistrar,
    Registrar,
    Registration,
    Source,
    hook_of,
)

ENTRY_POINT_GROUP = "grpo_core"
CORE_PLUGIN = "grpo-core"

DISABLE_VARIABLE = "GRPO_DISABLE_PLUGINS"
"""Comma-separated plugin or distribution names that are not loaded; ``*`` is all but the core."""
ONLY_VARIABLE = "GRPO_LOAD_PLUGINS"
"""When set, only these (and the core's own) are loaded; empty loads only the core's own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BrokenPlugin:
    """A plugin that could not be loaded, and why."""

    source: Source
    target: str
    error: BaseException

    @property
    def reason(self) -> str:
        return f"{type(self.error).__name__}: {self.error}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Discovery:
    """Everything found in one scan."""

    plugins: tuple[Source, ...]
    registrations: tuple[Registration, ...]
    broken: tuple[BrokenPlugin, ...]
    disabled: tuple[Source, ...]
    commands: tuple[CommandOffer, ...] = ()


def discover(*, files: Sequence[str] = (), disable: Sequence[str] = ()) -> Discovery:
    """Load the registration modules of all installed plugins, and of single files.

    Args:
        files: ``.py`` files with registration hooks, or dotted module names. The user asked for
            these by name, so a failure in one raises.
        disable: plugin or distribution names to leave out, besides ``GRPO_DISABLE_PLUGINS``.

    Raises:
        ConfigError: a file does not exist or cannot be loaded.
    """
    plugins: list[Source] = []
    disabled: list[Source] = []
    registrations: list[Registration] = []
    commands: list[CommandOffer] = []
    broken: list[BrokenPlugin] = []
    off = {*disable, *_names(os.environ.get(DISABLE_VARIABLE, ""))}
    only = os.environ.get(ONLY_VARIABLE)
    # Sorted, because the order of installed distributions differs between machines.
    points = sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda p: (p.name, p.value))
    for point in dict.fromkeys(points):
        source = _source(point)
        if not _wanted(source, off, None if only is None else set(_names(only))):
            disabled.append(source)
            continue
        # SystemExit too: a module that calls sys.exit() must not end a stranger's run.
        try:
            offered = _offered(point.load(), source)
        except (Exception, SystemExit) as error:
            broken.append(BrokenPlugin(source=source, target=point.value, error=error))
        else:
            plugins.append(source)
            registrations += offered[0]
            commands += offered[1]
    for file in files:
        source = Source(plugin=file, distribution=None, version=None)
        try:
            found, _ = _offered(load_file(file, what=f"--plugin {file}"), source)
        except ConfigError:
            raise
        except (Exception, SystemExit) as error:
            raise ConfigError(f"--plugin {file}: {type(error).__name__}: {error}") from error
        plugins.append(source)
        registrations += found
    return Discovery(
        plugins=tuple(plugins),
        registrations=tuple(registrations),
        broken=tuple(broken),
        disabled=tuple(disabled),
        commands=tuple(commands),
    )


def _offered(plugin: object, source: Source) -> tuple[list[Registration], list[CommandOffer]]:
    # Collected aside: a plugin that fails half-way offers nothing instead of something odd.
    found: list[Registration] = []
    commands: list[CommandOffer] = []
    registers: dict[str, object] = {hook_of(role): Registrar(role, source, found) for role in ROLES}
    call_registration(plugin, registers | {COMMANDS_HOOK: CommandRegistrar(source, commands)})
    return found, commands


def _source(point: EntryPoint) -> Source:
    dist = point.dist
    return Source(
        plugin=point.name,
        distribution=dist.name if dist else None,
        version=dist.version if dist else None,
    )


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _wanted(source: Source, off: set[str], only: set[str] | None) -> bool:
    names = {source.plugin, source.distribution}
    if CORE_PLUGIN in names:
        return True
    if names & off or "*" in off:
        return False
    return only is None or bool(names & only)


def load_file(file: str, *, what: str) -> ModuleType:
    """Import a ``.py`` file by its path, or a module by its name; ``what`` is for errors."""
    path = Path(file)
    if path.suffix != ".py":
        return importlib.import_module(file)
    if not path.is_file():
        raise ConfigError(f"{what}: there is no file {file!r} in {Path.cwd()}")
    name = f"grpo_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Registered before it runs: dataclasses and pickling look their module up by name.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
