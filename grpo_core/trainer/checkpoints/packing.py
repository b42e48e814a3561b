"""State as JSON beside named tensors: nothing in it runs when it is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch

from grpo_core.trainer.dynamic_sampling import ScoredGroup
from grpo_core.types import Abstained, Failed, Prompt, Rollout, ScoredRollouts, Span, Value

if TYPE_CHECKING:
    from torch import Tensor

RECORDS: Mapping[str, type[Any]] = {
    cls.__name__: cls
    for cls in (Abstained, Failed, Rollout, ScoredGroup, ScoredRollouts, Span, Value)
}
"""Dataclasses that may stand in a state; a name that is not here is never looked up."""


def pack(value: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """``value`` as JSON; each tensor goes into ``tensors`` under its place, and a prompt, which is
    the task's, is left as its id.

    Raises:
        TypeError: it holds something else than plain values, lists, tuples, dicts, tensors and
            ``RECORDS``; says where.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        # JSON has no NaN and no infinity.
        return float(value) if math.isfinite(value) else {"$float": str(float(value))}
    if isinstance(value, torch.Tensor):
        tensors[path] = value
        return {"$tensor": path}
    if isinstance(value, Prompt):
        return {"$prompt": value.id}
    if isinstance(value, list | tuple):
        items = [pack(item, tensors, f"{path}/{i}") for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    if isinstance(value, Mapping):
        return _pack_mapping(value, tensors, path)
    if RECORDS.get(type(value).__name__) is type(value):
        content = {field.name: getattr(value, field.name) for field in fields(value)}
        return {"$record": type(value).__name__, **_pack_mapping(content, tensors, path)}
    raise TypeError(
        f"{path} is a {type(value).__name__}; a checkpoint holds None, bool, int, float, str, "
        "list, tuple, dict and torch.Tensor"
    )


def unpack(packed: Any, tensors: Mapping[str, Tensor], prompt: Callable[[str], Prompt]) -> Any:
    """What was packed; ``prompt`` finds a task's prompt by its id."""

    def read(part: Any) -> Any:
        if isinstance(part, list):
            return [read(item) for item in part]
        if not isinstance(part, dict):
            return part
        if "$record" in part:
            content = {key: read(item) for key, item in part.items() if key != "$record"}
            return RECORDS[part["$record"]](**content)
        if "$float" in part:
            return float(part["$float"])
        if "$tensor" in part:
            return tensors[part["$tensor"]]
        if "$prompt" in part:
            return prompt(part["$prompt"])
        if "$tuple" in part:
            return tuple(read(item) for item in part["$tuple"])
        if "$dict" in part:
            return {read(key): read(item) for key, item in part["$dict"]}
        return {key: read(item) for key, item in part.items()}

    return read(packed)


def prompts_named(packed: Any) -> set[str]:
    """The ids of all prompts that ``unpack`` will ask for."""
    if isinstance(packed, list):
        return {name for item in packed for name in prompts_named(item)}
    if not isinstance(packed, dict):
        return set()
    if "$prompt" in packed:
        return {packed["$prompt"]}
    return {name for item in packed.values() for name in prompts_named(item)}


def _pack_mapping(value: Mapping[Any, Any], tensors: dict[str, Tensor], path: str) -> Any:
    if all(isinstance(key, str) and not key.startswith("$") for key in value):
        return {key: pack(item, tensors, f"{path}/{key}") for key, item in value.items()}
    # JSON's keys are strings: a count by token id would come back as a count by text.
    pairs = [
        [pack(key, tensors, f"{path} (key)"), pack(item, tensors, f"{path}/{key}")]
        for key, item in value.items()
    ]
    return {"$dict": pairs}
