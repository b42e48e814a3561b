"""What counts as the answer, and what it is compared with."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from grpo_core.errors import DataError
from grpo_core.protocols import RewardProvider
from grpo_rewards.config import ExactAnswerConfig
from grpo_rewards.exact_answer import ExactAnswer

Score = Callable[..., list[Any]]


def test_it_is_a_provider() -> None:
    assert isinstance(ExactAnswer(), RewardProvider)
    assert ExactAnswer().name == "exact-answer"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>2-1=1</think><answer>2</answer>", 1.0),
        ("<answer> 2\n</answer>", 1.0),
        ("<answer>\n2\n</answer> and more", 1.0),
        ("<answer>3</answer>", 0.0),
        ("<answer>22</answer>", 0.0),
        ("<answer>2.0</answer>", 0.0),
        ("<answer></answer>", 0.0),
        ("", 0.0),
        ("2", 0.0),
        ("<answer>2", 0.0),
        ("2</answer>", 0.0),
        ("<ANSWER>2</ANSWER>", 0.0),
    ],
)
def test_text_is_compared_after_white_space_is_taken_off(
    text: str, expected: float, score: Score
) -> None:
    assert score(ExactAnswer(), {"answer": "2"}, text) == [expected]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>1</answer> no, <answer>2</answer>", "2"),
        ("<answer>1</answer> no, <answer>2", "1"),
        ("<answer>1 <answer>2</answer>", "2"),
        ("<answer>1</answer>2</answer>", "1"),
        ("<answer>first\nsecond</answer>", "first\nsecond"),
        ("<answer>a < b </answer>", "a < b"),
        ("nothing", None),
    ],
)
def test_the_last_complete_answer_counts(text: str, answer: str | None) -> None:
    assert ExactAnswer().extract(text) == answer


def test_a_whole_request_in_order(score: Score) -> None:
    texts = [f"<answer>{digit}</answer>" for digit in "12321"]
    assert score(ExactAnswer(), {"answer": "2"}, *texts) == [0, 1, 0, 1, 0]


@pytest.mark.parametrize(
    ("answer", "text"), [(5, "5"), (-3.5, "-3.5"), (" 7 ", "7"), (True, "True")]
)
def test_answers_of_other_types_are_compared_as_text(
    answer: object, text: str, score: Score
) -> None:
    assert score(ExactAnswer(), {"answer": answer}, f"<answer>{text}</answer>") == [1.0]


def test_an_unknown_answer_is_no_wrong_answer(score: Score) -> None:
    assert score(ExactAnswer(), {"answer": None}, "<answer>2</answer>", "") == [None, None]


def test_other_pattern_and_column(score: Score) -> None:
    config = ExactAnswerConfig(pattern=r"#### *(-?\d+)", column="solution")
    texts = ["1+1=2\n#### 2", "#### 3", "<answer>2</answer>"]
    assert score(ExactAnswer(config), {"solution": 2}, *texts) == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("columns", "there"),
    [({"solution": "2", "level": 1}, "level, solution"), ({}, "no columns besides the prompt")],
)
def test_a_missing_column_names_those_that_exist(
    columns: dict[str, Any], there: str, score: Score
) -> None:
    with pytest.raises(DataError) as caught:
        score(ExactAnswer(), columns, "<answer>2</answer>")
    text = str(caught.value)
    assert "'answer'" in text
    assert "train/17" in text
    assert there in text
    assert "option 'column'" in text


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [(r"<answer>.*", "has 0 groups"), (r"(a)(b)", "has 2 groups"), (r"(", "is no regular expr")],
)
def test_a_pattern_must_mark_one_answer(pattern: str, problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        ExactAnswerConfig(pattern=pattern)


@pytest.mark.parametrize("text", ["<answer>" * 100_000, "<answer>" + "x" * 500_000])
def test_a_looping_completion_takes_linear_time(text: str) -> None:
    start = time.process_time()
    assert ExactAnswer().extract(text) is None
    # Searching from every tag to the end would take minutes.
    assert time.process_time() - start < 2
