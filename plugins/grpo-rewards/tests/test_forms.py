"""Forms, tags, steps and patterns; what open-r1 has, derived again from its description."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from grpo_core.protocols import RewardProvider
from grpo_rewards import (
    ReasoningSteps,
    ReasoningStepsConfig,
    RegexConfig,
    RegexMatch,
    TagCount,
    TagCountConfig,
    ThinkFormat,
    ThinkFormatConfig,
)

Score = Callable[..., list[Any]]
LINES = "<think>\nreasons\n</think>\n<answer>\n2\n</answer>"
PIECES = st.lists(
    st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "\n", "x", " "]), max_size=14
).map("".join)


def lines_form(text: str) -> bool:
    """open-r1's format without regular expressions, nothing but white space behind it."""
    text = text.rstrip()
    if not text.startswith("<think>\n") or not text.endswith("\n</answer>"):
        return False
    middle = "\n</think>\n<answer>\n"
    start = text.find(middle, len("<think>\n"))
    return start >= 0 and len(text) - len("\n</answer>") >= start + len(middle)


def think_form(text: str) -> bool:
    """TRL's think format without regular expressions."""
    rest = text.removeprefix("<think>")
    return text.startswith("<think>") and "<think>" not in rest and "</think>" in rest


@settings(max_examples=300)
@given(PIECES)
def test_forms_are_their_descriptions(text: str) -> None:
    for form, expected in (("think", think_form), ("think-answer-lines", lines_form)):
        for candidate in (text, f"<think>\n{text}\n</answer>", LINES + text, f"<think>{text}"):
            found = ThinkFormat(ThinkFormatConfig(form=form)).matches(candidate)
            # Several closing tags are our form's own matter: the first one must end it.
            if form == "think-answer-lines" and candidate.count("\n</answer>") > 1:
                assert not found or expected(candidate)
            else:
                assert found == expected(candidate), candidate


@pytest.mark.parametrize(
    ("form", "text", "matches"),
    [
        ("think-answer-lines", LINES, True),
        ("think-answer-lines", LINES + "\n", True),
        ("think-answer-lines", " " + LINES, False),
        ("think-answer-lines", LINES + "\nmore", False),
        ("think-answer-lines", LINES.replace("\n", ""), False),
        ("think-answer-lines", LINES.replace("</think>\n", "</think>\n\n"), False),
        ("think", "<think>x</think>anything", True),
        ("think", "<think></think>", True),
        ("think", "<think>x</think></think>", True),
        ("think", "<think>x<think></think>", False),
        ("think", " <think>x</think>", False),
        ("think", "<think>x", False),
    ],
)
def test_form(form: Any, text: str, matches: bool) -> None:
    assert ThinkFormat(ThinkFormatConfig(form=form)).matches(text) is matches


@pytest.mark.parametrize("form", ["think", "think-answer-lines"])
@pytest.mark.parametrize("part", ["<think>\n", "\n</think>\n<answer>\n", "\n</answer>", "x\n"])
def test_a_looping_completion_takes_linear_time(form: Any, part: str) -> None:
    provider = ThinkFormat(ThinkFormatConfig(form=form))
    start = time.process_time()
    provider.matches("<think>\n" + part * 50_000 + "x")
    provider.matches("<think>\n\n</think>\n<answer>\n" + part * 50_000 + "x")
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (LINES, 1.0),
        (LINES.replace("<think>\n", ""), 0.75),
        ("reasons\n<answer>\n2\n</answer>", 0.5),
        ("<think>\nreasons\n</think>\n2", 0.5),
        (LINES + "\n</answer>", 0.75),
        (LINES.replace("\n", ""), 0.0),
        ("", 0.0),
    ],
)
def test_tag_count(text: str, expected: float, score: Score) -> None:
    assert isinstance(TagCount(), RewardProvider)
    assert score(TagCount(), {}, text) == [expected]


def test_other_tags(score: Score) -> None:
    provider = TagCount(TagCountConfig(tags=("<a>", "</a>")))
    assert score(provider, {}, "<a>x</a>", "<a><a></a>", "x") == [1.0, 0.5, 0.0]
    with pytest.raises(ValidationError):
        TagCountConfig(tags=())


@pytest.mark.parametrize(
    ("text", "marks"),
    [
        ("Step 1: First step\nStep 2: Second step\nStep 3: Third step", 3),
        ("First, we do this.\nSecond, we do that.\nFinally, we conclude.", 3),
        ("Step 1: Only step", 1),
        ("First, we do this.\nFinally, we conclude.", 2),
        ("Just plain text without any clear steps", 0),
        ("1. a\n2. b", 2),
        ("\n- a\n* b\n- c\n- d", 3),
        ("- a", 0),
    ],
)
def test_reasoning_steps(text: str, marks: int, score: Score) -> None:
    assert score(ReasoningSteps(), {}, text) == [pytest.approx(marks / 3)]
    five = ReasoningSteps(ReasoningStepsConfig(enough=2))
    assert score(five, {}, text) == [pytest.approx(min(1.0, marks / 2))]


def test_regex(score: Score) -> None:
    found = RegexMatch(RegexConfig(pattern=r"a.b"))
    assert isinstance(found, RewardProvider)
    assert score(found, {}, "xa\nbx", "A\nB", "ab") == [1.0, 0.0, 0.0]
    whole = RegexMatch(RegexConfig(pattern=r"a.b", whole=True, ignore_case=True))
    assert score(whole, {}, "xa\nbx", "A\nB") == [0.0, 1.0]
    with pytest.raises(ValidationError, match="no regular expression"):
        RegexConfig(pattern="(")
