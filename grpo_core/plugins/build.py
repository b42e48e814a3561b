"""From a name and options to an object: import the target, validate its options, call it."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_core.errors import ConfigError, GRPOError, PluginError
from grpo_core.plugins.registrar import Registration, Role, Source
from grpo_core.protocols import BuildContext

if TYPE_CHECKING:
    from pydantic import BaseModel

    from grpo_core.plugins.registry import Registry


def find(registry: Registry, role: Role, name: str) -> Registration:
    """A registration by name; an import path (``module:Name``, ``file.py:Name``) makes its own.

    Raises:
        UnknownComponentError, ComponentCollisionError: see ``Registry.get``.
        ConfigError: an import path that leads nowhere.
    """
    if ":" not in name:
        return registry.get(role, name)
    target = import_object(name, what=f"{role} {name!r}")
    return Registration(
        role=role,
        name=name,
        target=target,
        config=getattr(target, "Config", None),
        summary=inspect.getdoc(target) or "",
        source=Source(plugin=name.partition(":")[0], distribution=None, version=None),
    )


def import_object(path: str, *, what: str) -> Callable[..., object]:
    """Import ``package.module:Name`` or ``folder/file.py:Name``.

    Raises:
        ConfigError: with what was looked for and what the module offers instead.
    """
    module_name, _, attribute = path.rpartition(":")
    try:
        if module_name.endswith(".py"):
            from grpo_core.plugins.discovery import load_file

            module = load_file(module_name, what=what)
        else:
            # A console script has no '' on sys.path, unlike `python -m`: without this a
            # module beside the config could be named in tests but not from the command.
            if str(Path.cwd()) not in sys.path:
                sys.path.insert(0, str(Path.cwd()))
            module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"{what}: cannot import {module_name!r}: {type(error).__name__}: {error}"
        ) from error
    found = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = ", ".join(n for n in vars(module) if not n.startswith("_"))
            raise ConfigError(f"{what}: {module_name!r} has no {attribute!r}; it has: {public}")
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(
            f"{what}: {path!r} is of type {type(found).__name__}, not a class or function"
        )
    return found


def config_model(registration: Registration) -> type[BaseModel] | None:
    """The pydantic model of a component's options; ``None`` when it declares none."""
    model = registration.config
    if isinstance(model, str):
        loaded = _import_target(registration, model)
        assert isinstance(loaded, type)
        return loaded
    return model


def is_factory(target: object) -> bool:
    """Whether ``target`` is built by ``target(config, context)`` (a class or a function whose
    first two parameters are so named)."""
    try:
        parameters = list(inspect.signature(target).parameters)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    return parameters[:2] == ["config", "context"]


def build(registration: Registration, config: Any, context: BuildContext) -> Any:
    """Make the component.

    Factories get ``(config, context)``, where ``config`` is an instance of the declared model, or
    ``None`` when none is declared. Other classes get the options as keyword arguments. Other
    functions *are* the component; options are bound to them as keyword arguments.

    Raises:
        PluginError: importing or constructing it failed; names plugin, distribution and call.
    """
    target = registration.target
    if isinstance(target, str):
        target = _import_target(registration, target)
    options = dict(config) if isinstance(config, Mapping) else {}
    try:
        if is_factory(target):
            return target(config, context)
        if isinstance(target, type):
            return target(**options)
        if options:
            import functools

            return functools.partial(target, **options)
        return target
    except GRPOError:
        raise
    except Exception as error:
        raise PluginError(
            f"{registration.role} {registration.name!r} of {registration.source} could not be "
            f"built: {registration.target_path}(...) raised {type(error).__name__}: {error}"
        ) from error


def _import_target(registration: Registration, path: str) -> Callable[..., object]:
    module_name, _, attribute = path.partition(":")
    try:
        target: Callable[..., object] = getattr(importlib.import_module(module_name), attribute)
    except (Exception, SystemExit) as error:
        missing = getattr(error, "name", None) if isinstance(error, ImportError) else None
        hint = f"; is {missing!r} installed?" if missing else ""
        raise PluginError(
            f"{registration.role} {registration.name!r} of {registration.source} cannot be "
            f"imported from {path!r}: {type(error).__name__}: {error}{hint}"
        ) from error
    return target
