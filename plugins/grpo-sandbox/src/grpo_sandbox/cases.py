"""Tests of a program, as data; and the forms in which datasets bring them."""

from __future__ import annotations

import ast
import builtins
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from grpo_core.errors import DataError
from grpo_sandbox.plain import NotPlainError, Tree, encode


@dataclass(frozen=True, kw_only=True, slots=True)
class StdinTest:
    """The program is run; what it writes is compared. Example: ``StdinTest(stdin="2 3\\n",
    expected="5\\n")``."""

    stdin: str
    expected: str
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class CallTest:
    """One call; its value is compared. Example: ``CallTest(name="add", args=[2, 3],
    expected=(5,))``."""

    name: str
    """A function, ``Class.method``, or a method of a class ``Solution``."""
    args: Tree
    """A list of trees (see ``plain``)."""
    kwargs: Tree = None
    expected: tuple[Tree, ...] = ()
    """Trees, each of which is right."""
    tuples_are_lists: bool = False
    """The expectation comes from JSON, which has no tuples."""
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class AssertTest:
    """Test code that calls the candidate's functions and raises unless all is well.

    Example: ``AssertTest(code="assert sorted(divisors(6)) == [1, 2, 3, 6]")``.
    """

    code: str
    names: tuple[str, ...]
    """What of the candidate's the code may mean."""
    weight: float = 1.0


Case = StdinTest | CallTest | AssertTest

COLUMNS = (
    *("tests", "verification_info", "input_output", "test_cases", "public_test_cases"),
    *("test_list", "test"),
)
"""Where tests are looked for, if no column is named."""


def cases(columns: Mapping[str, Any], column: str | None = None) -> list[Case] | None:
    """The tests that a prompt brings; ``None`` where the column says that there are none (null).

    Raises:
        DataError: no column, or tests in no known form.
    """
    name = column or find(columns)
    if name not in columns:
        raise DataError(
            f"the tests were to be in the column {name!r}, and the prompt has: {_names(columns)}"
        )
    if columns[name] is None:
        return None
    value = _data(columns[name])
    try:
        found = _cases(value, columns)
    except (KeyError, TypeError, ValueError, AttributeError, NotPlainError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"the tests in the column {name!r} are in no known form "
            f"({type(error).__name__}: {error}); they begin {str(value)[:200]!r}. See the forms in "
            "the how-to on code rewards"
        ) from error
    if not found:
        raise DataError(f"the column {name!r} has no tests in it: {str(value)[:200]!r}")
    return found


def find(columns: Mapping[str, Any]) -> str:
    """The column with the tests, by its usual name."""
    for name in COLUMNS:
        if name in columns:
            return name
    raise DataError(
        f"no column with tests; looked for {', '.join(COLUMNS)}, and the prompt has: "
        f"{_names(columns)}. Name it with the reward's option 'column'"
    )


def _names(columns: Mapping[str, Any]) -> str:
    return ", ".join(sorted(columns)) or "no columns besides the prompt"


def _data(value: Any) -> Any:
    """JSON in a string, as many datasets have it, is read; test code stays a string."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _cases(value: Any, columns: Mapping[str, Any]) -> list[Case]:
    if isinstance(value, str):  # HumanEval: test code, and a name that it calls `candidate`
        return [_asserted(_with_entry(value, columns), columns)]
    if isinstance(value, Mapping):
        if "test_cases" in value:  # open-r1's verification_info
            return [_case(item, {**columns, **value}) for item in _data(value["test_cases"])]
        if "inputs" in value:  # APPS, TACO
            return _apps(value)
        raise ValueError(f"an object with the keys {sorted(value)}")
    return [
        _asserted(item, columns) if isinstance(item, str) else _case(item, columns)
        for item in value
    ]


def _case(item: Mapping[str, Any], columns: Mapping[str, Any]) -> Case:
    given = item.get("weight")
    weight = 1.0 if given is None else float(given)
    if not 0 < weight < float("inf"):
        raise ValueError(f"a test's weight is positive, not {weight}")
    if item.get("assert") is not None:
        return replace(_asserted(str(item["assert"]), columns), weight=weight)
    if item.get("call") is not None:
        args, kwargs = _data(item.get("args")) or [], _data(item.get("kwargs")) or {}
        expected = _data(item["expected"])
        return _call(str(item["call"]), list(args), dict(kwargs), (expected,), weight)
    if item.get("stdin") is not None:
        expected = item["stdout"]
        return StdinTest(stdin=_text(item["stdin"]), expected=_text(expected), weight=weight)
    kind = item.get("testtype") or item.get("type") or "stdin"
    if kind in ("stdin", "stdin_stdout"):
        return StdinTest(stdin=_text(item["input"]), expected=_text(item["output"]), weight=weight)
    if kind in ("functional", "function_call"):
        name = item.get("fn_name") or _function_name(columns)
        return _call(name, _arguments(item["input"]), {}, (_loads(item["output"]),), weight)
    raise ValueError(f"a test of the type {kind!r}")


def _function_name(columns: Mapping[str, Any]) -> str:
    """LiveCodeBench has it in ``metadata``."""
    metadata = _data(columns.get("metadata")) or {}
    for place in (columns, metadata):
        for key in ("fn_name", "func_name"):
            if place.get(key):
                return str(place[key])
    raise ValueError("a call without the name of the function (fn_name)")


def _arguments(value: Any) -> list[Any]:
    """LiveCodeBench: one JSON value per line."""
    if isinstance(value, str):
        return [json.loads(line) for line in value.strip().split("\n")] if value.strip() else []
    return list(value)


def _loads(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


def _apps(value: Mapping[str, Any]) -> list[Case]:
    inputs, outputs = value["inputs"], value["outputs"]
    if len(inputs) != len(outputs):
        raise ValueError(f"{len(inputs)} inputs but {len(outputs)} outputs")
    name = value.get("fn_name")
    if not name:
        return [
            StdinTest(stdin=_text(given), expected=_text(wanted))
            for given, wanted in zip(inputs, outputs, strict=True)
        ]
    found: list[Case] = []
    for given, wanted in zip(inputs, outputs, strict=True):
        # Some rows wrap the value in a list and some do not; APPS's own grader takes either.
        wrapped = isinstance(wanted, Sequence) and not isinstance(wanted, str) and len(wanted) == 1
        expected = (wanted, wanted[0]) if wrapped else (wanted,)
        found.append(_call(str(name), list(given), {}, expected, 1.0))
    return found


def _call(
    name: str, args: list[Any], kwargs: dict[str, Any], expected: tuple[Any, ...], weight: float
) -> CallTest:
    return CallTest(
        name=name,
        args=encode(args),
        kwargs=encode(kwargs),
        expected=tuple(encode(value) for value in expected),
        tuples_are_lists=True,
        weight=weight,
    )


def _text(value: Any) -> str:
    """Some rows of APPS have the lines in a list."""
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence):
        return "\n".join(map(str, value))
    raise TypeError(f"stdin and stdout are text, not {type(value).__name__}")


# --------------------------------------------------------------------------------- test code


def _with_entry(code: str, columns: Mapping[str, Any]) -> str:
    entry = columns.get("entry_point")
    return f"{code}\n\ncheck({entry})\n" if entry and "def check" in code else code


def _asserted(code: str, columns: Mapping[str, Any]) -> CallTest | AssertTest:
    setup = _setup(columns)
    try:
        tree = ast.parse(f"{setup}\n{code}" if setup else code)
    except SyntaxError as error:
        raise DataError(f"test code that is no Python ({error}): {code[:200]!r}") from error
    if not setup and (call := _as_call(tree)):
        return call
    return AssertTest(code=ast.unparse(tree), names=_meant(tree, columns))


def _setup(columns: Mapping[str, Any]) -> str:
    """MBPP has ``test_setup_code``, or ``test_imports`` as a list."""
    parts = columns.get("test_imports") or []
    lines = [*parts] if not isinstance(parts, str) else [parts]
    return "\n".join([*lines, columns.get("test_setup_code") or ""]).strip()


def _as_call(tree: ast.Module) -> CallTest | None:
    """``assert f(1, 2) == 3`` needs no second interpreter: it is a call with a known value."""
    match tree.body:
        case [ast.Assert(test=ast.Compare(left=ast.Call() as call, ops=[ast.Eq()]) as compare)]:
            pass
        case _:
            return None
    if not isinstance(call.func, ast.Name) or call.func.id in vars(builtins):
        return None
    try:
        args = [encode(ast.literal_eval(arg)) for arg in call.args]
        kwargs = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords if k.arg}
        expected = encode(ast.literal_eval(compare.comparators[0]))
        if len(kwargs) != len(call.keywords):
            return None
        return CallTest(name=call.func.id, args=args, kwargs=encode(kwargs), expected=(expected,))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


def _meant(tree: ast.Module, columns: Mapping[str, Any]) -> tuple[str, ...]:
    """Names that the test code reads. A built-in function stays Python's own: with a `sorted` or
    `all` of the candidate's the verdict would be the candidate's too."""
    read = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "solution":
            read |= {alias.name for alias in node.names}
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            read |= {node.attr} if node.value.id == "solution" else set()
    entry = columns.get("entry_point")
    return tuple(
        sorted(
            name
            for name in read
            if name == entry or (name not in vars(builtins) and not name.startswith("__"))
        )
    )
