"""What a plugin is handed to register its components with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from grpo_core.errors import PluginError

if TYPE_CHECKING:
    from pydantic import BaseModel

API = 1
"""Number of the plugin contract; a plugin that needs a newer one is refused by name."""

Role = Literal[
    "task",
    "generator",
    "environment",
    "reward",
    "advantage",
    "loss",
    "reference",
    "saver",
    "observer",
]
ROLES: tuple[Role, ...] = get_args(Role)


def plural(role: Role) -> str:
    """How a role is called in hooks and in config lists: ``loss`` -> ``losses``."""
    return role + ("es" if role.endswith("s") else "s")


def hook_of(role: Role) -> str:
    """The registration hook of a role: ``loss`` -> ``grpo_register_losses``."""
    return f"grpo_register_{plural(role)}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Who registers. Example: ``Source(plugin="grpo-losses", distribution="grpo-losses",
    version="0.1.0")``; a single file has its path for a name and no distribution."""

    plugin: str
    distribution: str | None
    version: str | None

    def __str__(self) -> str:
        if self.distribution is None:
            return self.plugin
        return f"{self.distribution} {self.version}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Registration:
    """One component that a config may name."""

    role: Role
    name: str
    target: str | Callable[..., object]
    """``"package.module:Name"``, or the object itself in a single-file plugin."""
    config: str | type[BaseModel] | None
    """A pydantic model of the component's options, or where to find it; ``None``: no options."""
    summary: str
    source: Source

    @property
    def target_path(self) -> str:
        if isinstance(self.target, str):
            return self.target
        return f"{self.target.__module__}:{getattr(self.target, '__qualname__', self.name)}"


@dataclass(frozen=True, kw_only=True, slots=True)
class CommandOffer:
    """A command of ``grpo`` that a plugin brings. Example: ``CommandOffer(name="serve",
    target="grpo_mine.command:serve", summary="Start a server.", source=source)``."""

    name: str
    target: str
    summary: str
    source: Source


COMMANDS_HOOK = "grpo_register_commands"

Register = Callable[..., None]
"""``register(name, target, *, config=None, summary="", api=1)``."""


class CommandRegistrar:
    """Collects one plugin's commands."""

    def __init__(self, source: Source, into: list[CommandOffer]) -> None:
        self._source = source
        self._into = into

    def __call__(self, name: str, target: str, *, summary: str = "", api: int = 1) -> None:
        """Offer the click command at ``target`` as ``grpo NAME``.

        Raises:
            PluginError: a malformed name or target, or an API number that is not known here.
        """
        _require_known(api, f"command {name!r}", self._source)
        if not name.replace("-", "").isalnum():
            raise PluginError(f"{name!r} is no command name: letters, digits and '-' only")
        if target.count(":") != 1:
            raise PluginError(
                f"command {name!r} has target {target!r}; expected 'package.module:command'"
            )
        self._into.append(
            CommandOffer(name=name, target=target, summary=summary, source=self._source)
        )


def _require_known(api: int, what: str, source: Source) -> None:
    if api != API:
        raise PluginError(
            f"{what} asks for plugin API {api}, but this grpo-core speaks API {API}; install a "
            f"matching version of {source} or of grpo-core"
        )


class Registrar:
    """Collects one plugin's registrations for one role."""

    def __init__(self, role: Role, source: Source, into: list[Registration]) -> None:
        self._role = role
        self._source = source
        self._into = into

    def __call__(
        self,
        name: str,
        target: str | Callable[..., object],
        *,
        config: str | type[BaseModel] | None = None,
        summary: str = "",
        api: int = 1,
    ) -> None:
        """Offer ``target`` under ``name``.

        Raises:
            PluginError: a malformed name or target, or an API number that is not known here.
        """
        _require_known(api, f"{self._role} {name!r}", self._source)
        if not name or any(c.isspace() or c in ":/=" for c in name):
            raise PluginError(
                f"{name!r} is no component name: it must be non-empty, without spaces, ':', '/' "
                "or '=' (a colon marks an import path in configs)"
            )
        if isinstance(target, str) and target.count(":") != 1:
            raise PluginError(
                f"{self._role} {name!r} has target {target!r}; expected 'package.module:Name'"
            )
        self._into.append(
            Registration(
                role=self._role,
                name=name,
                target=target,
                config=config,
                summary=summary,
                source=self._source,
            )
        )
