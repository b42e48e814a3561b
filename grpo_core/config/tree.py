"""Config data in which every value remembers where it was written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

KeyPath = tuple[str | int, ...]
"""Keys and list positions from the root: ``("rewards", 0, "weight")``."""


def dotted(path: KeyPath) -> str:
    """As it is written after ``--set``: ``rewards.0.weight``."""
    return ".".join(str(part) for part in path)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value was written. Example: ``Place("run.yaml", 12)`` reads ``run.yaml:12``."""

    source: str
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


DEFAULTS = Place("defaults")

Value = str | int | float | bool | None | dict[str, "Node"] | list["Node"]


@dataclass(frozen=True, slots=True)
class Node:
    """A value and its place. ``value`` is never changed after construction."""

    value: Value
    place: Place

    def __getitem__(self, key: str | int) -> Node:
        """A child; ``KeyError`` or ``IndexError`` where there is none."""
        if isinstance(self.value, dict) and isinstance(key, str):
            return self.value[key]
        if isinstance(self.value, list) and isinstance(key, int):
            return self.value[key]
        raise KeyError(key)

    def get(self, key: str | int) -> Node | None:
        """A child, or ``None``."""
        try:
            return self[key]
        except (KeyError, IndexError):
            return None

    def place_of(self, path: KeyPath) -> Place:
        """Where the deepest existing part of ``path`` was written."""
        node = self
        for part in path:
            child = node.get(part)
            if child is None:
                break
            node = child
        return node.place

    def plain(self) -> Any:
        """The value as dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value

    def without(self, keys: Sequence[str]) -> Node:
        """A mapping without some of its keys."""
        assert isinstance(self.value, dict)
        return Node({k: v for k, v in self.value.items() if k not in keys}, self.place)


def from_plain(data: Any, place: Place) -> Node:
    """Plain data as a tree, all of it written at ``place``."""
    if isinstance(data, Mapping):
        return Node({str(k): from_plain(v, place) for k, v in data.items()}, place)
    if isinstance(data, (list, tuple)):
        return Node([from_plain(v, place) for v in data], place)
    return Node(data, place)
