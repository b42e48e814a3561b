"""From files and ``--set`` to a ``ResolvedConfig``, or to one error with every problem in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from grpo_core.config.checks import Draft, check
from grpo_core.config.components import ResolvedComponent, resolve_component
from grpo_core.config.layers import Source, assemble
from grpo_core.config.overrides import parse_overrides
from grpo_core.config.problems import Problems
from grpo_core.config.resolved import ResolvedConfig, resolved
from grpo_core.config.schema import LIST_BLOCKS, SECTIONS, SINGLE_BLOCKS, RunConfig
from grpo_core.config.tree import DEFAULTS, KeyPath, Node, from_plain
from grpo_core.config.validation import shown, unknown_key, validate
from grpo_core.plugins import ROLES, Registry, Role, config_model

DEFAULT_ADVANTAGE = "group"

HOMES = {key: f"{section}.{key}" for section, m in SECTIONS.items() for key in m.model_fields}
"""Where a key belongs that was written somewhere else: ``learning_rate`` to ``optimizer``."""


def load_config(
    sources: Sequence[Source], sets: Sequence[str] = (), registry: Registry | None = None
) -> ResolvedConfig:
    """Merge, look up and validate; nothing is built and no torch imported.

    Args:
        sources: YAML files, or mappings of the same shape; later ones win.
        sets: ``"a.b=c"``, each value parsed as YAML; they win over every file. A list entry is
            addressed by its position, and the position after the last one appends.
        registry: what is available; everything installed by default.

    Raises:
        ConfigError: with every problem found, each with file, line, dotted path, the nearest
            name and what is possible.
        PluginError: a plugin that the config names is broken, and that is the only problem.
    """
    problems = Problems()
    root = assemble(sources, parse_overrides(sets, problems), problems)
    _unknown_keys(root, problems)
    sections = _sections(root, problems)
    components = _components(root, registry or Registry.installed(), problems)
    draft = Draft(**{key: sections.get(key) for key in SECTIONS}, components=tuple(components))
    check(draft, root, problems)
    problems.raise_if_any()
    return resolved(sections, components)


def _unknown_keys(root: Node, problems: Problems) -> None:
    assert isinstance(root.value, dict)
    for key, child in root.value.items():
        if key not in RunConfig.model_fields:
            text = unknown_key(key, RunConfig.model_fields, HOMES)
            problems.add(text, (key,), child.place)


def _sections(root: Node, problems: Problems) -> dict[str, Any]:
    """The valid ones among the parts that no plugin has a say in."""
    found: dict[str, Any] = {}
    for key, model in SECTIONS.items():
        node = root.get(key)
        if node is None and key == "model":
            problems.add("missing: the model to train, with its path", (key,), root.place)
            continue
        if key == "evaluation" and (node is None or node.value is None):
            continue
        if node is None or node.value is None:
            # An empty section is one whose lines are all commented out.
            node = Node({}, root.place if node is None else node.place)
        section = validate(model, node, (key,), problems, homes=HOMES)
        if section is not None:
            found[key] = section
    return found | _output(root, problems)


def _output(root: Node, problems: Problems) -> dict[str, Any]:
    node = root.get("output")
    if node is None:
        return {}
    if not isinstance(node.value, str) or not node.value:
        problems.add(f"should be a folder, got {shown(node.plain())}", ("output",), node.place)
    return {"output": node.value}


def _components(root: Node, registry: Registry, problems: Problems) -> list[ResolvedComponent]:
    found = []
    for role, path, node in _blocks(root, problems):
        component = resolve_component(registry, role, node, path, problems)
        if component is not None:
            found.append(component)
    block = root.get("advantage")
    if block is None or block.value is None:
        block = from_plain({"name": _default_advantage(found)}, DEFAULTS)
    advantage = resolve_component(registry, "advantage", block, ("advantage",), problems)
    if advantage is not None:
        found.append(advantage)
    return sorted(found, key=lambda component: ROLES.index(component.role))


def _blocks(root: Node, problems: Problems) -> Iterator[tuple[Role, KeyPath, Node]]:
    """Every block but the advantage, which depends on the loss."""
    for key, role in SINGLE_BLOCKS.items():
        if role != "advantage":
            yield role, (key,), root.get(key) or Node({}, root.place)
    for key, role in LIST_BLOCKS.items():
        node = root[key]
        if isinstance(node.value, list):
            for position, item in enumerate(node.value):
                yield role, (key, position), item
        else:
            text = f"should be a list, for instance [{shown(node.plain())}]"
            problems.add(text, (key,), node.place)


def _default_advantage(components: list[ResolvedComponent]) -> str:
    """What the loss's own paper uses, said by its config model as ``default_advantage``."""
    loss = next((c for c in components if c.role == "loss"), None)
    model = None if loss is None else config_model(loss.registration)
    return str(getattr(model, "default_advantage", DEFAULT_ADVANTAGE))
