"""What is a number, and which numbers are equal."""

from __future__ import annotations

import time
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_core.errors import DataError
from grpo_core.protocols import RewardProvider
from grpo_rewards import NumberAnswer, NumberAnswerConfig

Score = Callable[..., list[Any]]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("it is 5", "5"),
        ("5.", "5"),
        ("2 + 3 = 5.", "5"),
        ("0.50", "1/2"),
        (".5", "1/2"),
        ("1/2", "1/2"),
        ("5e-1", "1/2"),
        ("-7", "-7"),
        ("x=-7", "-7"),
        ("\N{MINUS SIGN}7", "-7"),
        ("10-3", "3"),
        ("(1)-3", "3"),
        ("$1,234,567.50!", "2469135/2"),
        ("1,2", "2"),
        ("1,2345", "2345"),
        ("50%", "50"),
        ("A4", "4"),
        ("<answer>7</answer>", "7"),
        ("no number", None),
        ("", None),
        ("1/0", None),
        ("1e999999999", None),
        ("1" * 1000, None),
    ],
)
def test_the_last_number(text: str, number: str | None) -> None:
    assert NumberAnswer().extract(text) == (None if number is None else Fraction(number))


@given(st.integers(-(10**30), 10**30), st.sampled_from(["{}", "{:,}", "so {}.", "{}.00", "{}/1"]))
def test_every_integer_is_read_as_itself(number: int, form: str) -> None:
    assert NumberAnswer().extract(form.format(number)) == number


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_is_read_as_itself(number: float) -> None:
    assert NumberAnswer().extract(f"it is {number!r}") == Fraction(repr(number))


def test_numbers_are_compared_exactly(score: Score) -> None:
    assert isinstance(NumberAnswer(), RewardProvider)
    texts = ["2", "2.0", "4/2", "3 or 2", "2 or 3", "two", "2.0000001"]
    expected = [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    assert score(NumberAnswer(), {"answer": "#### 2"}, *texts) == expected
    assert score(NumberAnswer(), {"answer": 2}, *texts) == expected
    big = 2**53
    assert score(NumberAnswer(), {"answer": big}, f"{big}", f"{big + 1}") == [1.0, 0.0]
    assert score(NumberAnswer(), {"answer": 1}, "9" * 390) == [0.0]


def test_near_is_right_where_asked_for(score: Score) -> None:
    relative = NumberAnswer(NumberAnswerConfig(rel_tol=0.01))
    assert score(relative, {"answer": "100"}, "99", "98.9", "-100") == [1.0, 0.0, 0.0]
    absolute = NumberAnswer(NumberAnswerConfig(abs_tol=0.5))
    assert score(absolute, {"answer": "100"}, "99.5", "99.4") == [1.0, 0.0]


def test_where_the_answer_stands(score: Score) -> None:
    provider = NumberAnswer(NumberAnswerConfig(pattern=r"#### (.*)", column="gold"))
    assert score(provider, {"gold": 4}, "#### 4", "4", "#### 5") == [1.0, 0.0, 0.0]


def test_a_wrong_column_and_no_number_in_it_are_errors(score: Score) -> None:
    assert score(NumberAnswer(), {"answer": None}, "4") == [None]
    with pytest.raises(DataError, match="no number"):
        score(NumberAnswer(), {"answer": "four"}, "4")
    with pytest.raises(DataError, match="it has: solution"):
        score(NumberAnswer(), {"solution": "4"}, "4")


@pytest.mark.parametrize("part", ["111,", "1", "1,", "-", "1/", "1e", ".", "1."])
def test_a_looping_completion_takes_linear_time(part: str) -> None:
    start = time.process_time()
    NumberAnswer().extract(part * 100_000)
    assert time.process_time() - start < 2
