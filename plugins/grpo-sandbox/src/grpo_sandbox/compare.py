"""When an answer is the expected one. Nothing here runs or trusts what the candidate wrote."""

from __future__ import annotations

import json
import math
from typing import Literal

from grpo_sandbox.plain import Tree

StdoutRule = Literal["lines", "tokens", "exact"]


def same_stdout(
    expected: str, written: bytes, *, rule: StdoutRule = "lines", tolerance: float = 0.0
) -> bool:
    """Whether a program wrote what it should.

    Args:
        rule: ``exact``: the same bytes. ``lines``: the same number of lines, each equal after
            white space at its end is taken off; blank lines at the end do not count.
            ``tokens``: the same words in the same order.
        tolerance: words that are numbers may differ so much, relatively or absolutely.
    """
    if rule == "exact":
        return written == expected.encode("utf-8", "surrogatepass")
    try:
        text = written.decode("utf-8")
    except UnicodeDecodeError:
        return False
    if rule == "tokens":
        return _same_words(expected.split(), text.split(), tolerance)
    wanted, found = _lines(expected), _lines(text)
    return len(wanted) == len(found) and all(
        a == b or (tolerance > 0 and _same_words(a.split(), b.split(), tolerance))
        for a, b in zip(wanted, found, strict=True)
    )


def _lines(text: str) -> list[str]:
    return "\n".join(line.rstrip() for line in text.split("\n")).rstrip("\n").split("\n")


def _same_words(wanted: list[str], found: list[str], tolerance: float) -> bool:
    return len(wanted) == len(found) and all(
        a == b or (tolerance > 0 and _close(a, b, tolerance))
        for a, b in zip(wanted, found, strict=True)
    )


def _close(a: str, b: str, tolerance: float) -> bool:
    try:
        return math.isclose(float(a), float(b), rel_tol=tolerance, abs_tol=tolerance)
    except ValueError:
        return False


def parse(text: bytes) -> tuple[Tree] | None:
    """The one tree that was written; ``None`` if it is none, or not alone."""
    try:
        return (json.loads(text),)
    except (ValueError, RecursionError):
        return None


def same_value(
    expected: Tree, answer: Tree, *, tuples_are_lists: bool = False, tolerance: float = 0.0
) -> bool:
    """Whether two trees (see ``plain``) are equal values, as Python's ``==`` of plain data.

    So ``1``, ``1.0`` and ``True`` are equal, ``"1"`` is not; NaN equals nothing; the order counts
    in lists and not in sets and dicts. The answer is walked as a tree and never made a set or a
    dict of: a hostile one could have all its hashes collide.

    Args:
        tuples_are_lists: for expectations that come from JSON, which has no tuples.
        tolerance: floats may differ so much, relatively or absolutely.
    """
    try:
        return _Comparison(tuples_are_lists, tolerance).same(expected, answer)
    except (LookupError, RecursionError, TypeError, ValueError, AttributeError, OverflowError):
        return False  # no tree of a value


class _Comparison:
    def __init__(self, tuples_are_lists: bool, tolerance: float) -> None:
        self._alike = tuples_are_lists
        self._tolerance = tolerance

    def same(self, a: Tree, b: Tree) -> bool:
        kind, x = self._open(a)
        other, y = self._open(b)
        if kind != other:
            return False
        if kind == "number":
            return self._same_numbers(x, y)
        if kind in ("list", "tuple"):
            return len(x) == len(y) and all(map(self.same, x, y))
        if kind == "set":
            return self._unordered([[v, None] for v in x], [[v, None] for v in y])
        if kind == "dict":
            return self._unordered(x, y)
        return bool(x == y)

    def _open(self, tree: Tree) -> tuple[str, Tree]:
        if tree is None or isinstance(tree, str):
            return ("none" if tree is None else "text"), tree
        if isinstance(tree, bool | int | float):
            return "number", tree
        if isinstance(tree, list):
            return "list", tree
        ((key, inner),) = tree.items()
        if key == "i":
            return "number", int(inner, 16)
        if key == "c":
            real, imaginary = inner
            return "number", complex(real, imaginary)
        if key == "t" and self._alike:
            return "list", inner
        return {"t": "tuple", "s": "set", "f": "set", "d": "dict", "b": "bytes"}[key], inner

    def _same_numbers(self, a: complex, b: complex) -> bool:
        if a == b or not self._tolerance or (isinstance(a, int) and isinstance(b, int)):
            return a == b
        largest = max(abs(a), abs(b))
        return math.isfinite(largest) and abs(a - b) <= self._tolerance * max(1.0, largest)

    def _unordered(self, a: list[list[Tree]], b: list[list[Tree]]) -> bool:
        """Keys are matched as text, whose hashes nobody can choose; the last of equal ones counts,
        as in Python."""
        wanted = {self._text(key): value for key, value in a}
        found = {self._text(key): value for key, value in b}
        return wanted.keys() == found.keys() and all(
            self.same(value, found[key]) for key, value in wanted.items()
        )

    def _text(self, tree: Tree) -> str:
        kind, inner = self._open(tree)
        if kind == "number":
            if isinstance(inner, complex) and inner.imag == 0:
                inner = inner.real
            whole = isinstance(inner, int) or (isinstance(inner, float) and inner.is_integer())
            return f"n{hex(int(inner)) if whole else inner!r}"
        # A list that stands for a tuple, in a JSON expectation; else neither is a key in Python.
        if kind == "dict" or (kind == "list" and not self._alike):
            raise TypeError("unhashable")
        if kind in ("tuple", "list"):
            return "t[" + ",".join(map(self._text, inner)) + "]"
        if kind == "set":
            return "s[" + ",".join(sorted(set(map(self._text, inner)))) + "]"
        return kind[0] + json.dumps(inner)
