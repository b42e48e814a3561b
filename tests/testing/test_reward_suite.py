"""The suite for rewards: good ones pass, and every broken promise is found by its check."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from grpo_core.testing import RewardSuite
from grpo_core.types import ScoreRequest, Value


def failures(suite: Any) -> set[str]:
    """The checks that fail."""
    found = set()
    for name in dir(suite):
        if name.startswith("test_"):
            try:
                getattr(suite, name)()
            except Exception:
                found.add(name)
    return found


def of(make: Callable[[], Any], **attributes: Any) -> RewardSuite:
    class Suite(RewardSuite):
        completions = ("it is 5", "it is 17", "no idea")
        columns = {"answer": "5"}

        def make(self) -> Any:
            return make()

    # What this file defines, a worker process cannot import.
    for name, value in {"isolates": False, "most_seconds": 0.9, **attributes}.items():
        setattr(Suite, name, value)
    return Suite()


def nearest(completions: list[str], answer: list[str]) -> list[float | None]:
    numbers = [re.search(r"\d+", c) for c in completions]
    return [float(n[0][:9]) - float(a) if n else None for n, a in zip(numbers, answer, strict=True)]


async def later(completions: list[str], answer: list[str]) -> list[float | None]:
    return nearest(completions, answer)


class Length:
    name = "length"

    def score(self, request: ScoreRequest) -> list[Value]:
        return [Value(value=float(len(r.text))) for r in request.rollouts_B]


def test_good_ones_pass() -> None:
    for reward in (nearest, later, Length()):
        assert failures(of(lambda reward=reward: reward)) == set()
    messages = of(lambda: lambda completions: [len(c[0]["content"]) for c in completions])
    type(messages).conversational = True
    assert failures(messages) == set()


class Ranks(Length):
    """Compares all completions with each other without saying so."""

    def score(self, request: ScoreRequest) -> list[Value]:
        texts = sorted(r.text for r in request.rollouts_B)
        return [Value(value=float(texts.index(r.text))) for r in request.rollouts_B]


def counter() -> Callable[..., Any]:
    numbers = itertools.count()
    return lambda completions: [float(next(numbers)) for _ in completions]


BROKEN: dict[str, tuple[Callable[[], Any], set[str]]] = {
    "by position": (
        lambda: lambda completions: [float(i) for i, _ in enumerate(completions)],
        {"test_a_score_stays_with_its_completion"},
    ),
    "drops one": (
        lambda: lambda completions: [1.0, *map(len, set(completions))][: len(completions) - 1],
        {"test_one_finite_number_or_none_for_each_completion"},
    ),
    "constant": (
        lambda: lambda completions: [1.0 for _ in completions],
        {"test_one_finite_number_or_none_for_each_completion"},
    ),
    "counts": (counter, {"test_scored_again_it_is_the_same"}),
    "all groups": (Ranks, {"test_other_groups_change_nothing"}),
    "not empty": (
        lambda: lambda completions: [float(ord(c.split()[-1][0])) for c in completions],
        {"test_odd_completions_are_scored_or_abstained_from"},
    ),
    "not every character": (
        lambda: lambda completions: [float(len(c.encode())) for c in completions],
        {"test_odd_completions_are_scored_or_abstained_from"},
    ),
    "slow when it is long": (
        lambda: lambda completions: [time.sleep(len(c) > 9999) or len(c) for c in completions],
        {"test_a_long_completion_takes_no_longer_than_it_may"},
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_promise_is_found_by_its_check(name: str) -> None:
    make, expected = BROKEN[name]
    assert expected <= failures(of(make, long_completion=30_000))


def test_what_cannot_be_isolated_is_found() -> None:
    suite = of(lambda: lambda completions: [float(len(c)) for c in completions], isolates=True)
    assert failures(suite) == {"test_it_scores_the_same_in_a_process_of_its_own"}
