"""The candidate's side: loads ``solution.py`` and answers with data.

What this program says cannot be believed more than the candidate itself, as they are one
interpreter. So it never says whether something is right: it is asked with arguments, and what it
answers is compared elsewhere, with values that have never been here.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from types import ModuleType
from typing import Any

from grpo_sandbox.plain import Tree, decode, encode


def load(path: str) -> ModuleType:
    """The candidate's module."""
    spec = importlib.util.spec_from_file_location("solution", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["solution"] = module
    spec.loader.exec_module(module)
    return module


def own_channel() -> tuple[int, int]:
    """Where questions come from and answers go; what the candidate prints goes to stderr."""
    asked, answers = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    return asked, answers


def function_of(module: ModuleType, name: str) -> Any:
    """``name`` of the module, ``Class.name``, or the method of a class ``Solution``."""
    first, _, rest = name.partition(".")
    if rest:
        return getattr(getattr(module, first)(), rest)
    if not hasattr(module, name) and hasattr(module, "Solution"):
        return getattr(module.Solution(), name)
    return getattr(module, name)


def answer_once(path: str) -> None:
    """One call, as JSON on stdin; its value, as JSON on stdout."""
    asked, answers = own_channel()
    with os.fdopen(asked, encoding="utf-8") as handle:
        question = json.load(handle)
    arguments = decode(question["args"])
    named = decode(question["kwargs"])
    value = function_of(load(path), question["name"])(*arguments, **named)
    _write(answers, encode(value))


def _write(handle: int, tree: Tree) -> None:
    text = json.dumps(tree).encode() + b"\n"
    while text:
        text = text[os.write(handle, text) :]


class Answering:
    """Many questions: names, calls, attributes. Objects stay here and are known by number."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module
        self._objects: list[Any] = []

    def answer(self, question: dict[str, Any]) -> Tree:
        operation = getattr(self, "_" + question.pop("op"))
        return {"value": operation(**question)}

    def _names(self, names: list[str]) -> Tree:
        found = {n: getattr(self._module, n) for n in names if hasattr(self._module, n)}
        return {name: self._tree(value) for name, value in found.items()}

    def _call(self, of: int, args: Tree, kwargs: Tree) -> Tree:
        arguments, named = decode(args, self._object), decode(kwargs, self._object)
        return self._tree(self._objects[of](*arguments, **named))

    def _get(self, of: int, name: str) -> Tree:
        return self._tree(getattr(self._objects[of], name))

    def _item(self, of: int, key: Tree) -> Tree:
        return self._tree(self._objects[of][decode(key, self._object)])

    def _all(self, of: int, most: int) -> Tree:
        values = iter(self._objects[of])
        return [self._tree(value) for value, _ in zip(values, range(most), strict=False)]

    def _text(self, of: int) -> Tree:
        return str(self._objects[of])

    def _length(self, of: int) -> Tree:
        return len(self._objects[of])

    def _object(self, number: Tree) -> Any:
        return self._objects[number]

    def _tree(self, value: object) -> Tree:
        return encode(value, self._refer)

    def _refer(self, value: object) -> Tree:
        self._objects.append(value)
        return {"r": len(self._objects) - 1}


def answer_many(path: str) -> None:
    """One question per line on stdin, one answer per line on stdout."""
    asked, answers = own_channel()
    answering: Answering | None = None
    with os.fdopen(asked, encoding="utf-8") as questions:
        for line in questions:
            try:
                answering = answering or Answering(load(path))
                reply = answering.answer(json.loads(line))
            except Exception as error:
                reply = {"error": type(error).__name__, "message": str(error)[:500]}
            _write(answers, reply)


def main(folder: str) -> None:
    path = os.path.join(folder, "solution.py")
    (answer_once if sys.argv[1] == "once" else answer_many)(path)
