"""``--set a.b=c``: one value, parsed as YAML, at one dotted path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grpo_core.config.problems import Problems
from grpo_core.config.tree import Node, Place
from grpo_core.config.yaml_text import read_text


@dataclass(frozen=True, slots=True)
class Override:
    """Example: ``Override(("rewards", "0", "weight"), Node(2, Place("--set ...")))``."""

    path: tuple[str, ...]
    value: Node


def parse_overrides(sets: Sequence[str], problems: Problems) -> list[Override]:
    """In the order in which they are to be applied.

    The command line is one layer, so the order of writing matters only between two values for
    one path, where the last wins. Whole blocks come before parts of them and names before
    options: ``--set loss.clip_high=0.3 --set loss=dapo`` must not lose the option.
    """
    parsed = [_parse(text, problems) for text in sets]
    found = [override for override in parsed if override is not None]
    return sorted(found, key=lambda o: (len(o.path), o.path[-1] != "name"))


def _parse(text: str, problems: Problems) -> Override | None:
    place = Place(f"--set {text}")
    key, equals, value = text.partition("=")
    path = tuple(part.strip() for part in key.split("."))
    if not equals or not all(path):
        problems.add("expected KEY=VALUE, for instance train.steps=100", place=place)
        return None
    node = read_text(value, place.source, problems, lines=False)
    return None if node is None else Override(path, node)
