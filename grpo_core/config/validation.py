"""Values against a pydantic model, and its complaints in the words of the person who wrote them."""

from __future__ import annotations

import difflib
import json
import types
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from grpo_core.config.problems import Problems
from grpo_core.config.tree import KeyPath, Node

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

Model = TypeVar("Model", bound=BaseModel)

NO_HOMES: Mapping[str, str] = types.MappingProxyType({})

SHOWN = 60
"""Characters of a wrong value that an error repeats."""


def validate(
    model: type[Model],
    node: Node,
    path: KeyPath,
    problems: Problems,
    *,
    homes: Mapping[str, str] = NO_HOMES,
) -> Model | None:
    """An instance of ``model``, or ``None`` after adding what is wrong to ``problems``.

    Strict, as JSON: ``steps: true`` or ``steps: "8"`` are mistakes, not the numbers 1 and 8,
    while lists still become tuples and 1 is a fine float. ``homes`` are keys of other sections,
    with where they belong.
    """
    data = node.plain()
    try:
        return model.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        grouped: dict[KeyPath, list[ErrorDetails]] = {}
        for detail in error.errors(include_url=False):
            grouped.setdefault(_written_path(detail, data), []).append(detail)
        for inner, details in grouped.items():
            text = _explain(model, inner, details, homes)
            problems.add(text, (*path, *inner), node.place_of(inner))
    return None


def unknown_key(key: str, known: Iterable[str], homes: Mapping[str, str] = NO_HOMES) -> str:
    """What is said of a key that means nothing here, but perhaps elsewhere."""
    known = sorted(known)
    near = difflib.get_close_matches(key, [*known, *homes], n=1)
    meant = key if key in homes else near[0] if near else None
    hint = ""
    if meant is not None:
        hint = f"; did you mean {(meant if meant in known else homes[meant])!r}?"
    return f"unknown key{hint or ';'} Known: {', '.join(known) or 'none'}."


def shown(value: Any) -> str:
    """A value as YAML-like text, not longer than ``SHOWN``."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def _written_path(detail: ErrorDetails, data: Any) -> KeyPath:
    """pydantic's location without the union branches in it, which nobody wrote."""
    path: list[str | int] = []
    last = len(detail["loc"]) - 1
    for position, part in enumerate(detail["loc"]):
        if isinstance(data, Mapping) and part in data:
            data = data[str(part)]
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        elif position != last or detail["type"] != "missing":
            continue
        path.append(part)
    return tuple(path)


def _explain(
    model: type[BaseModel], path: KeyPath, details: list[ErrorDetails], homes: Mapping[str, str]
) -> str:
    first = details[0]
    match first["type"]:
        case "extra_forbidden":
            return unknown_key(str(path[-1]), _known_keys(model, path[:-1]), homes)
        case "missing":
            return "missing" + _description(model, path)
        case "value_error":
            return first["msg"].removeprefix("Value error, ")
        case "model_type":
            return f"expected a mapping of keys to values, got {shown(first['input'])}"
    wanted = dict.fromkeys(
        d["msg"].removeprefix("Input ").removeprefix("should be ") for d in details
    )
    return f"should be {' or '.join(wanted)}, got {shown(first['input'])}"


def _known_keys(model: type[BaseModel], path: KeyPath) -> list[str]:
    found = model_at(model, path)
    return [] if found is None else [f.alias or name for name, f in found.model_fields.items()]


def _description(model: type[BaseModel], path: KeyPath) -> str:
    parent = model_at(model, path[:-1])
    field = None if parent is None else parent.model_fields.get(str(path[-1]))
    return f": {field.description}" if field is not None and field.description else ""


def model_at(model: type[BaseModel], path: KeyPath) -> type[BaseModel] | None:
    """The model of what stands at ``path`` inside ``model``, if it is one."""
    found: Any = model
    for part in path:
        if isinstance(found, type) and issubclass(found, BaseModel) and isinstance(part, str):
            field = found.model_fields.get(part)
            found = None if field is None else _inner(field.annotation)
        elif isinstance(part, str):
            return None
    return found if isinstance(found, type) and issubclass(found, BaseModel) else None


def _inner(annotation: Any) -> Any:
    """The model inside ``Model | None``, ``list[Model]`` or ``tuple[Model, ...]``."""
    if get_origin(annotation) in (Union, types.UnionType, list, tuple):
        inner = [_inner(argument) for argument in get_args(annotation)]
        return next((a for a in inner if isinstance(a, type) and issubclass(a, BaseModel)), None)
    return annotation
