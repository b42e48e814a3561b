"""Defaults < files in the order given < ``--set``.

Mappings are merged key by key, everything else is replaced, lists too. A component whose name
changes starts afresh: options meant for another one are dropped instead of being misread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

from grpo_core.config.overrides import Override
from grpo_core.config.problems import Problems
from grpo_core.config.schema import LIST_BLOCKS, SINGLE_BLOCKS, RunConfig, is_block
from grpo_core.config.tree import DEFAULTS, KeyPath, Node, Place, from_plain
from grpo_core.config.yaml_text import read_file

Source = str | Path | Mapping[str, Any]
"""A YAML file, or plain data of the same shape."""


def assemble(sources: Sequence[Source], overrides: Sequence[Override], problems: Problems) -> Node:
    """All layers as one tree, with component names spelt out as ``{name: ...}``.

    Raises:
        ConfigError: a file cannot be read; what it would have held is not reported as missing.
    """
    layers = [_read(source, problems) for source in sources]
    readable = [layer for layer in layers if layer is not None]
    if len(readable) < len(layers):
        problems.raise_if_any()
    root = reduce(lambda low, high: _merge(low, high, ()), [_defaults(sources), *readable])
    for override in overrides:
        root = _assign(root, override.path, (), override.value, problems)
    return root


def _defaults(sources: Sequence[Source]) -> Node:
    values: dict[str, Any] = {}
    for key in (*SINGLE_BLOCKS, *LIST_BLOCKS):
        default = RunConfig.model_fields[key].default
        if isinstance(default, tuple):
            values[key] = [{"name": block.name} for block in default]
        elif default is not None and hasattr(default, "name"):
            values[key] = {"name": default.name}
    files = [source for source in sources if not isinstance(source, Mapping)]
    if files:
        values["output"] = f"runs/{Path(files[-1]).stem}"
    place = Place(str(files[-1])) if files else DEFAULTS
    children = {key: from_plain(value, DEFAULTS) for key, value in values.items()}
    return Node({**children}, place)


def _read(source: Source, problems: Problems) -> Node | None:
    if isinstance(source, Mapping):
        node: Node | None = from_plain(source, Place("config"))
    else:
        node = read_file(source, problems)
    if node is not None and not isinstance(node.value, dict):
        problems.add("a config is a mapping of keys to values", place=node.place)
        return None
    return None if node is None else _spelt_out(node)


def _spelt_out(root: Node) -> Node:
    assert isinstance(root.value, dict)
    entries = {}
    for key, child in root.value.items():
        if isinstance(child.value, list) and key in LIST_BLOCKS:
            child = Node([_named(item) for item in child.value], child.place)
        entries[key] = _named(child) if key in SINGLE_BLOCKS else child
    # Without a line: what is missing from a file is missing from all of it.
    return Node(entries, Place(root.place.source))


def _named(node: Node) -> Node:
    """``dapo`` as ``{name: dapo}``."""
    return Node({"name": node}, node.place) if isinstance(node.value, str) else node


def _merge(low: Node, high: Node, path: KeyPath) -> Node:
    if not isinstance(low.value, dict) or not isinstance(high.value, dict):
        return high
    if is_block(path) and _renames(low, high):
        return high
    merged = dict(low.value)
    for key, child in high.value.items():
        merged[key] = _merge(merged[key], child, (*path, key)) if key in merged else child
    return Node(merged, high.place)


def _renames(low: Node, high: Node) -> bool:
    old, new = low.get("name"), high.get("name")
    return new is not None and (old is None or old.value != new.value)


def _assign(
    node: Node | None, rest: tuple[str, ...], done: KeyPath, value: Node, problems: Problems
) -> Node:
    """A copy of ``node`` with ``value`` at ``rest``, by the same rules as merging a file."""
    if not rest:
        if len(done) == 1:
            value = _spelt_out(Node({str(done[0]): value}, value.place))[str(done[0])]
        elif is_block(done):
            value = _named(value)
        return value if node is None else _merge(node, value, done)
    key = rest[0]
    if node is not None and isinstance(node.value, list):
        return _assign_item(node, node.value, rest, done, value, problems)
    entries = dict(node.value) if node is not None and isinstance(node.value, dict) else {}
    child = _assign(entries.get(key), rest[1:], (*done, key), value, problems)
    if is_block(done) and key == "name" and node is not None:
        return _merge(node, Node({key: child}, child.place), done)
    place = node.place if node is not None else value.place
    return Node({**entries, key: child}, place)


def _assign_item(
    node: Node,
    items: list[Node],
    rest: tuple[str, ...],
    done: KeyPath,
    value: Node,
    problems: Problems,
) -> Node:
    if not rest[0].isdecimal() or int(rest[0]) > len(items):
        problems.add(
            f"{rest[0]!r} is no position in a list of {len(items)}; positions count from 0, and "
            f"{len(items)} appends",
            (*done, rest[0]),
            value.place,
        )
        return node
    index = int(rest[0])
    old = items[index] if index < len(items) else None
    new = _assign(old, rest[1:], (*done, index), value, problems)
    return Node([*items[:index], new, *items[index + 1 :]], node.place)
