"""One role block: find what it names, validate its options against what the component declares."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from grpo_core.config.problems import Problems
from grpo_core.config.schema import Block, RewardBlock
from grpo_core.config.tree import KeyPath, Node
from grpo_core.config.validation import shown, unknown_key, validate
from grpo_core.errors import PluginError
from grpo_core.plugins import Registration, Registry, Role, config_model, find
from grpo_core.plugins.build import is_factory
from grpo_core.settings import OnError, RewardExecution

if TYPE_CHECKING:
    from collections.abc import Iterable

Options = BaseModel | Mapping[str, Any] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ResolvedComponent:
    """A component that exists, with options that it accepts.

    Example: ``ResolvedComponent(role="loss", registration=..., options=DapoConfig())``.
    """

    role: Role
    registration: Registration
    options: Options
    """An instance of the declared model; keyword arguments for an import path without one;
    ``None`` when there are no options."""
    weight: float = 1.0
    """Of a reward; see ``RewardBlock``."""
    label: str | None = None
    on_error: OnError = "stop"
    execution: RewardExecution = field(default_factory=RewardExecution)

    @property
    def name(self) -> str:
        return self.registration.name

    def plain_options(self) -> dict[str, Any]:
        """All options, defaults included, as plain data."""
        if isinstance(self.options, BaseModel):
            return self.options.model_dump(mode="json", by_alias=True)
        return dict(self.options or {})

    def block(self) -> Block:
        """The same as a config writes it."""
        if self.role != "reward":
            return Block(name=self.name, **self.plain_options())
        own = {key: getattr(self, key) for key in RewardBlock.model_fields if key != "name"}
        return RewardBlock.model_validate({"name": self.name, **own, **self.plain_options()})

    def manifest(self) -> dict[str, Any]:
        """Who provides it: role, name, distribution, version, target, config."""
        source = self.registration.source
        return {
            "role": self.role,
            "name": self.name,
            "distribution": source.distribution,
            "version": source.version,
            "target": self.registration.target_path,
            "config": self.plain_options(),
        }


def resolve_component(
    registry: Registry, role: Role, node: Node, path: KeyPath, problems: Problems
) -> ResolvedComponent | None:
    """The component of one block, or ``None`` after adding what is wrong to ``problems``."""
    if not isinstance(node.value, dict):
        problems.add(
            f"should be the name of a {role}, or a mapping with its name and options, got "
            f"{shown(node.plain())}; {_installed(registry, role)}",
            path,
            node.place,
        )
        return None
    own = _own_settings(role, node, path, problems)
    registration = _registration(registry, role, node, path, problems)
    if registration is None or own is None:
        return None
    before = len(problems.found)
    options = _options(registration, node.without(list(type(own).model_fields)), path, problems)
    if len(problems.found) > before:
        return None
    extras = {key: getattr(own, key) for key in type(own).model_fields if key != "name"}
    if isinstance(own, RewardBlock):
        # What a reward says it needs (a process that can be killed, say) gives way to the config.
        needed = getattr(options, "execution_defaults", {})
        asked = own.execution.model_dump(exclude_unset=True)
        extras["execution"] = RewardExecution.model_validate({**needed, **asked})
    return ResolvedComponent(role=role, registration=registration, options=options, **extras)


def _own_settings(role: Role, node: Node, path: KeyPath, problems: Problems) -> Block | None:
    model = RewardBlock if role == "reward" else Block
    entries = node.value if isinstance(node.value, dict) else {}
    # A missing name is reported once, by `_registration`, with what could be named.
    own = {"name": Node("?", node.place), **{k: v for k, v in entries.items() if k != "name"}}
    return validate(
        model,
        Node({k: v for k, v in own.items() if k in model.model_fields}, node.place),
        path,
        problems,
    )


def _registration(
    registry: Registry, role: Role, node: Node, path: KeyPath, problems: Problems
) -> Registration | None:
    name = node.get("name")
    path = (*path, "name")
    if name is None:
        problems.add(f"missing: which {role}? {_installed(registry, role)}", path, node.place)
    elif not isinstance(name.value, str):
        problems.add(f"should be a name, got {shown(name.plain())}", path, name.place)
    else:
        with problems.caught(path, name.place):
            return find(registry, role, name.value)
    return None


def _installed(registry: Registry, role: Role) -> str:
    return f"Installed: {', '.join(registry.names(role)) or 'none'}."


def _options(registration: Registration, node: Node, path: KeyPath, problems: Problems) -> Options:
    with problems.caught(path, node.place):
        model = checked_model(registration)
        if model is not None:
            return validate(model, node, path, problems)
        return _arguments(registration, node, path, problems)
    return None


def checked_model(registration: Registration) -> type[BaseModel] | None:
    """The model of a component's options, fit for a config.

    Raises:
        PluginError: it cannot be imported, is no pydantic model, or has a field that a config
            could never set because the block itself has a key of that name.
    """
    model: Any = config_model(registration)
    if model is None:
        return None
    who = f"{registration.role} {registration.name!r} of {registration.source}"
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise PluginError(f"{who} has config {model!r}, which is no pydantic model")
    block = RewardBlock if registration.role == "reward" else Block
    taken = sorted(set(block.model_fields) & set(model.model_fields))
    if taken:
        raise PluginError(
            f"{who} has an option {taken[0]!r}, which a config cannot set: the key means "
            "something else in every block; the plugin must give its option another name"
        )
    return model


def _arguments(
    registration: Registration, node: Node, path: KeyPath, problems: Problems
) -> Mapping[str, Any] | None:
    """Options of a component without a model: arguments, if an import path leads to it."""
    given = node.plain()
    accepted = _accepted(registration)
    for key in given:
        if accepted is not None and key not in accepted:
            problems.add(unknown_key(key, accepted), (*path, key), node.place_of((key,)))
    return given or None


def _accepted(registration: Registration) -> Iterable[str] | None:
    """Keyword arguments that a config may give; ``None`` when any will do."""
    if isinstance(registration.target, str) or is_factory(registration.target):
        return []
    try:
        parameters = inspect.signature(registration.target).parameters.values()
    except (TypeError, ValueError):
        return None
    # A function's **kwargs are for data columns: taken for options, a misspelt `weight` would pass.
    is_class = isinstance(registration.target, type)
    if is_class and any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
