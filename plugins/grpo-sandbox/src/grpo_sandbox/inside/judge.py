"""The tests' side: runs test code whose calls into the candidate go over a pipe.

The candidate is in another process and another box. Here it is a set of ``Remote`` objects; what
it returns arrives as data, and every comparison is this interpreter's own. The verdict goes to
stderr, which only this side has.
"""

from __future__ import annotations

import builtins
import inspect
import json
import os
import runpy
import sys
import unittest
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NoReturn

from grpo_sandbox.plain import MOST, NotPlainError, Tree, decode, encode

MOST_ITEMS = 100_000


class GoneError(BaseException):
    """The candidate ended, or what it wrote is no answer. Not an ``Exception``: a test that expects
    one must not take this for it."""


class UnfitTestError(BaseException):
    """The test asks for what does not pass through a pipe; nobody's fault but the test's."""


class CandidateError(Exception):
    """The candidate raised something that is no built-in exception."""


class Channel:
    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(0), "rb")
        self._questions = os.dup(1)
        self.calls = 0

    def ask(self, operation: str, **details: Any) -> Tree:
        text = json.dumps({"op": operation, **details}).encode() + b"\n"
        try:
            while text:
                text = text[os.write(self._questions, text) :]
        except BrokenPipeError:
            raise GoneError("the candidate has ended") from None
        line = self._answers.readline(MOST + 1)
        if not line.endswith(b"\n"):
            raise GoneError("the candidate's answer is too long" if line else "candidate ended")
        try:
            reply = json.loads(line)
            if "value" in reply:
                return reply["value"]
            name, message = str(reply["error"]), str(reply["message"])
        except (ValueError, RecursionError, KeyError, TypeError):
            raise GoneError("what the candidate wrote is no answer") from None
        kind = getattr(builtins, name, None)
        if isinstance(kind, type) and issubclass(kind, Exception):
            try:
                raised = kind(message)
            except TypeError:  # UnicodeDecodeError and the like want more than a message
                raised = CandidateError(f"{name}: {message}")
            raise raised
        raise CandidateError(f"{name}: {message}")

    def value(self, tree: Tree) -> Any:
        try:
            return decode(tree, self.remote)
        except (ValueError, RecursionError, TypeError):
            raise GoneError("what the candidate wrote is no value") from None

    def remote(self, number: Tree) -> Remote:
        return Remote(self, int(number))

    def tree(self, value: object) -> Tree:
        def refer(other: object) -> Tree:
            if isinstance(other, Remote):
                return {"r": other._number}
            raise NotPlainError(f"{type(other).__name__} is not plain data")

        try:
            return encode(value, refer)
        except NotPlainError as error:
            raise UnfitTestError(f"the test passes a value to the candidate: {error}") from None


class Remote:
    """Something of the candidate's that is no data: a function, a class, an object.

    Comparing is never left to it: it equals itself alone, and is neither true nor false.
    """

    def __init__(self, channel: Channel, number: int) -> None:
        self._channel = channel
        self._number = number

    def __call__(self, *args: object, **kwargs: object) -> Any:
        channel = self._channel
        channel.calls += 1
        trees = {"args": channel.tree(list(args)), "kwargs": channel.tree(dict(kwargs))}
        return channel.value(channel.ask("call", of=self._number, **trees))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._channel.value(self._channel.ask("get", of=self._number, name=name))

    def __getitem__(self, key: object) -> Any:
        channel = self._channel
        return channel.value(channel.ask("item", of=self._number, key=channel.tree(key)))

    def __iter__(self) -> Iterator[Any]:
        channel = self._channel
        return iter(channel.value(channel.ask("all", of=self._number, most=MOST_ITEMS)))

    def __len__(self) -> int:
        return int(self._channel.ask("length", of=self._number))

    def __str__(self) -> str:
        return str(self._channel.ask("text", of=self._number))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and other._number == self._number

    def __hash__(self) -> int:
        return self._number

    def __bool__(self) -> bool:
        raise TypeError("the candidate returned an object that is not plain data")


def run(channel: Channel, names: list[str], path: str) -> None:
    """The test file as a script, then what it only defines: test functions and TestCases."""
    found = channel.ask("names", names=names)
    if not isinstance(found, dict):
        raise GoneError("what the candidate wrote are no names")
    there = {name: channel.value(tree) for name, tree in found.items() if name in names}
    solution = ModuleType("solution")
    vars(solution).update(there)
    sys.modules["solution"] = solution
    try:
        defined = runpy.run_path(path, init_globals=dict(there), run_name="__main__")
    except SystemExit as end:  # of unittest.main()
        if end.code:
            raise
        return
    for name, value in list(defined.items()):
        if name.startswith("test") and inspect.isfunction(value):
            if inspect.signature(value).parameters:
                raise UnfitTestError(f"{name} takes arguments (fixtures?), which nobody has here")
            value()
        elif isinstance(value, type) and issubclass(value, unittest.TestCase):
            unittest.defaultTestLoader.loadTestsFromTestCase(value).debug()


def conclude(verdict: str, why: str, handle: int) -> NoReturn:
    os.write(handle, json.dumps({"verdict": verdict, "why": why[:500]}).encode())
    os._exit(0)


def main(folder: str) -> None:
    told = os.dup(2)
    channel = Channel()
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    names = json.loads(sys.argv[1])
    del sys.argv[1:]  # unittest.main() would read them
    try:
        run(channel, names, os.path.join(folder, "tests.py"))
    except UnfitTestError as error:
        conclude("invalid", str(error), told)
    except BaseException as error:
        conclude("failed", f"{type(error).__name__}: {error}", told)
    if not channel.calls:
        conclude("invalid", "the test passed without a call of the candidate", told)
    conclude("passed", "", told)
