"""Python values as JSON trees and back: data only, so that nothing foreign is ever run or compared.

``None``, booleans, strings, finite and other floats, small integers and lists stand for themselves;
everything else is an object with one key that names its type. Used on both sides of the wall and
free of imports beyond the standard library.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Tree = Any
"""What ``json`` reads and writes. Example: ``{"t": [1, {"s": ["a"]}]}`` is ``(1, {"a"})``."""

MOST = 1 << 20
"""Bytes of one message; a longer answer is no answer."""


class NotPlainError(TypeError):
    """A value that is no data, such as a function, a class or an array."""


def encode(value: object, refer: Callable[[object], Tree] | None = None) -> Tree:
    """A tree for a value; subclasses count as their base.

    Args:
        refer: makes a tree for what is no data; without it ``NotPlainError`` is raised.
    """
    if value is None or isinstance(value, bool | str):
        return value if value is None or isinstance(value, bool) else str(value)
    if isinstance(value, int):
        # Long decimal numbers are slow to read, and Python refuses them beyond 4300 digits.
        return int(value) if -(1 << 53) < value < 1 << 53 else {"i": hex(value)}
    if isinstance(value, float):
        return float(value)
    if isinstance(value, complex):
        return {"c": [value.real, value.imag]}
    if isinstance(value, bytes | bytearray):
        return {"b": value.hex()}
    if isinstance(value, dict):
        return {"d": [[encode(k, refer), encode(v, refer)] for k, v in value.items()]}
    for kind, key in ((tuple, "t"), (set, "s"), (frozenset, "f")):
        if isinstance(value, kind):
            return {key: [encode(x, refer) for x in value]}
    if isinstance(value, list):
        return [encode(x, refer) for x in value]
    if refer is not None:
        return refer(value)
    raise NotPlainError(f"{type(value).__name__} is not plain data")


def decode(tree: Tree, resolve: Callable[[Tree], object] | None = None) -> Any:
    """The value of a tree.

    Raises:
        ValueError: it is none.
    """
    if tree is None or isinstance(tree, bool | str | int | float):
        return tree
    if isinstance(tree, list):
        return [decode(x, resolve) for x in tree]
    if not isinstance(tree, dict) or len(tree) != 1:
        raise ValueError("no tree of a value")
    ((key, inner),) = tree.items()
    try:
        return _decode(key, inner, resolve)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"no tree of a value: {error}") from error


def _decode(key: str, inner: Any, resolve: Callable[[Tree], object] | None) -> object:
    if key == "i":
        return int(inner, 16)
    if key == "b":
        return bytes.fromhex(inner)
    if key == "c":
        return complex(*inner)
    if key == "d":
        return {decode(k, resolve): decode(v, resolve) for k, v in inner}
    kinds: dict[str, Callable[[Any], object]] = {"t": tuple, "s": set, "f": frozenset}
    if key in kinds:
        return kinds[key](decode(x, resolve) for x in inner)
    if key == "r" and resolve is not None:
        return resolve(inner)
    raise ValueError(f"no tree of a value: {key!r}")
