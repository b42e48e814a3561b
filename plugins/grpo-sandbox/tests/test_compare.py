"""When two values, and two outputs, are the same."""

from __future__ import annotations

import ast
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_sandbox.compare import parse, same_stdout, same_value
from grpo_sandbox.plain import NotPlainError, decode, encode

pytestmark = pytest.mark.xdist_group("sandbox")

hashable = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=4,
)
values = st.recursive(
    hashable | st.binary(max_size=3) | st.complex_numbers(allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(hashable, inner, max_size=3)
        | st.sets(hashable, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=50)
@given(values)
def test_a_value_survives_its_way_as_text(value: object) -> None:
    assert decode(json.loads(json.dumps(encode(value)))) == value


@settings(max_examples=50)
@given(values, values)
def test_equality_is_pythons(a: object, b: object) -> None:
    assert same_value(encode(a), encode(b)) == (a == b)
    assert same_value(encode(a), encode(a))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("[1, 2]", "(1, 2)"),
        ("1", "'1'"),
        ("{1: 2}", "[[1, 2]]"),
        ("b'a'", "'a'"),
        ("[1]", "[1, 1]"),
        ("{1, 2}", "[1, 2]"),
        ("None", "0"),
        ("''", "None"),
        ("[]", "{}"),
    ],
)
def test_different(a: str, b: str) -> None:
    first, second = encode(ast.literal_eval(a)), encode(ast.literal_eval(b))
    assert not same_value(first, second)
    assert not same_value(second, first)


def test_tuples_are_lists_where_the_expectation_is_json() -> None:
    assert same_value([1, [2]], encode((1, (2,))), tuples_are_lists=True)
    assert not same_value([1, [2]], encode((1, (2,))))


def test_tolerance_is_for_floats() -> None:
    assert same_value(0.3, 0.1 + 0.2, tolerance=1e-9)
    assert not same_value(0.3, 0.1 + 0.2)
    assert not same_value(1000001, 1000000, tolerance=1e-3)
    assert not same_value(float("nan"), float("nan"), tolerance=1e-3)
    assert not same_value(1.0, float("inf"), tolerance=0.5)


@pytest.mark.parametrize(
    "tree",
    [
        {"t": 5},
        {"i": "zz"},
        {"x": []},
        {},
        {"a": 1, "b": 2},
        {"c": [1, 2, 3]},
        {"d": [1]},
        {"s": [{}]},
        {"d": [[[1], 2]]},
    ],
)
def test_what_is_no_tree_equals_nothing(tree: object) -> None:
    assert not same_value(1, tree)
    assert not same_value({"d": [[1, 2]]}, tree)
    with pytest.raises(ValueError, match=r"no tree|invalid|unhashable|not enough|literal"):
        decode(tree)


def test_hostile_trees_cost_little() -> None:
    started = time.process_time()
    # As a Python set these would take minutes: all hashes are equal.
    colliding = {"s": [{"i": hex(n * (2**61 - 1))} for n in range(50_000)]}
    assert not same_value(encode({1}), colliding)
    assert parse(b"[" * 1_000_000) is None
    assert parse(b"9" * 1_000_000) is None
    assert parse(b'{"verdict": 1} {"verdict": 2}') is None
    assert time.process_time() - started < 10


def test_no_data_is_refused() -> None:
    with pytest.raises(NotPlainError, match="function"):
        encode([len, lambda: 0][1])


@pytest.mark.parametrize(
    ("expected", "written", "rules"),
    [
        ("1\n2\n", "1\n2\n", {"lines", "tokens", "exact"}),
        ("1\n2", "1  \n2\n\n", {"lines", "tokens"}),
        ("1\n2", "1 2", {"tokens"}),
        ("1\n2", "1\n2\n3", set()),  # open-r1 compares the first two lines only
        ("1\n2", "1", set()),
        ("", "", {"lines", "tokens", "exact"}),
        ("5", "05", set()),
        ("a", " a", {"tokens"}),
        ("1\n\n2", "1\n2", {"tokens"}),
    ],
)
def test_stdout(expected: str, written: str, rules: set[str]) -> None:
    same = {r for r in ("lines", "tokens", "exact") if _same(expected, written, r)}
    assert same == rules


def _same(expected: str, written: str, rule: str) -> bool:
    return same_stdout(expected, written.encode(), rule=rule)  # type: ignore[arg-type]


def test_stdout_with_tolerance() -> None:
    assert same_stdout("x 0.3333", b"x 0.33333333\n", tolerance=1e-3)
    assert not same_stdout("x 0.3333", b"y 0.3333\n", tolerance=1e-3)
    assert not same_stdout("1 2", b"1 2 2\n", tolerance=1e-3)
    assert not same_stdout("1", b"nan", tolerance=1e-3)
    assert not same_stdout("\ufffd", b"\xff")
