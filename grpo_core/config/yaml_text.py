"""YAML files and text as trees with line numbers; see ``grpo_core.yaml12`` for the dialect."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from grpo_core.config.problems import Problems
from grpo_core.config.tree import Node, Place
from grpo_core.yaml12 import CORE_SCHEMA, TAG, Loader


def read_file(file: str | Path, problems: Problems) -> Node | None:
    """A YAML file as a tree; an empty one is an empty mapping, an unusable one a problem."""
    place = Place(str(file))
    try:
        text = Path(file).read_text(encoding="utf-8")
    except FileNotFoundError:
        problems.add("there is no such file", place=place)
        return None
    except (OSError, UnicodeDecodeError) as error:
        problems.add(f"cannot be read: {error}", place=place)
        return None
    node = read_text(text, str(file), problems)
    if node is not None and node.value is None:
        return Node({}, node.place)
    return node


def read_text(text: str, source: str, problems: Problems, *, lines: bool = True) -> Node | None:
    """YAML text as a tree. ``lines=False`` leaves line numbers out (``--set``)."""
    try:
        root = yaml.compose(text, Loader=Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None and lines else None
        problems.add(f"not valid YAML: {error.problem}", place=Place(source, line))
        return None
    except yaml.YAMLError as error:
        problems.add(f"not valid YAML: {error}", place=Place(source))
        return None
    if root is None:
        return Node(None, Place(source))
    return _Converter(source, lines, problems).convert(root)


class _Converter:
    """PyYAML's nodes to ours."""

    def __init__(self, source: str, lines: bool, problems: Problems) -> None:
        self._source = source
        self._lines = lines
        self._problems = problems
        self._open: list[yaml.Node] = []

    def convert(self, node: yaml.Node, place: Place | None = None) -> Node:
        place = place or self._place(node)
        if node in self._open:
            self._problems.add("the anchor refers to itself", place=place)
            return Node(None, place)
        self._open.append(node)
        try:
            return Node(self._value(node), place)
        finally:
            self._open.pop()

    def _value(self, node: yaml.Node) -> Any:
        kind = node.tag.removeprefix(TAG)
        if isinstance(node, yaml.MappingNode) and kind == "map":
            return self._mapping(node)
        if isinstance(node, yaml.SequenceNode) and kind == "seq":
            return [self.convert(child) for child in node.value]
        if isinstance(node, yaml.ScalarNode) and kind in {"str", *CORE_SCHEMA}:
            return self._scalar(kind, node)
        # Tags make other objects than what is written; a config needs none.
        self._problems.add(f"the tag {node.tag!r} is not supported", place=self._place(node))
        return None

    def _mapping(self, node: yaml.MappingNode) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        for key_node, value_node in node.value:
            place = self._place(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                self._problems.add("a key must be a plain word", place=place)
                continue
            key = str(key_node.value)
            if key == "<<":
                self._problems.add(
                    "merge keys (<<) are not supported; pass several files instead", place=place
                )
            elif key in entries:
                # PyYAML would take the second one without a word.
                self._problems.add(
                    f"key {key!r} is already given at {entries[key].place}", place=place
                )
            else:
                entries[key] = self.convert(value_node, place)
        return entries

    def _scalar(self, kind: str, node: yaml.ScalarNode) -> str | int | float | bool | None:
        text: str = node.value
        try:
            match kind:
                case "null":
                    return None
                case "bool":
                    return {"true": True, "false": False}[text.lower()]
                case "int":
                    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
                case "float":
                    return float(re.sub(r"\.(inf|nan)", r"\1", text.lower()))
        except (KeyError, ValueError):
            self._problems.add(f"{text!r} is no {kind}", place=self._place(node))
        return text

    def _place(self, node: yaml.Node) -> Place:
        return Place(self._source, node.start_mark.line + 1 if self._lines else None)
