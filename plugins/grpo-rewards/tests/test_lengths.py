"""Rewards of length and repetition, number by number."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from grpo_core.errors import DataError
from grpo_core.protocols import RewardProvider
from grpo_core.types import Span
from grpo_rewards import (
    CosineLength,
    CosineLengthConfig,
    Length,
    LengthConfig,
    RepetitionPenalty,
    RepetitionPenaltyConfig,
    SoftOverlong,
    SoftOverlongConfig,
)

Make = Callable[..., Any]
RIGHT, WRONG = r"so \boxed{2}", r"so \boxed{3}"
TOOL = Span(token_ids=(9,) * 50, logprobs=None, policy_version=None)


def sampled(*ids: int) -> Span:
    return Span(token_ids=ids, logprobs=(-1.0,) * len(ids), policy_version=0)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [(1, 0.0), (80, 0.0), (81, -0.05), (90, -0.5), (100, -1.0), (101, -1.0), (500, -1.0)],
)
def test_soft_overlong(tokens: int, expected: float, rollout: Make, score_rollouts: Make) -> None:
    provider = SoftOverlong(SoftOverlongConfig(max_tokens=100, soft_tokens=20))
    assert isinstance(provider, RewardProvider)
    assert score_rollouts(provider, rollout(tokens=[7] * tokens)) == [expected]


def test_soft_overlong_without_a_slope(rollout: Make, score_rollouts: Make) -> None:
    provider = SoftOverlong(SoftOverlongConfig(max_tokens=3, soft_tokens=0))
    rollouts = [rollout(tokens=[7] * n) for n in (2, 3, 4)]
    assert score_rollouts(provider, *rollouts) == [0.0, 0.0, -1.0]
    with pytest.raises(ValidationError, match="soft_tokens 4 is more than max_tokens 3"):
        SoftOverlongConfig(max_tokens=3, soft_tokens=4)


def test_what_tools_wrote_is_neither_long_nor_repeated(rollout: Make, score_rollouts: Make) -> None:
    spans = (sampled(1, 2, 3), TOOL, sampled(3, 1, 2))
    overlong = SoftOverlong(SoftOverlongConfig(max_tokens=6, soft_tokens=0))
    assert score_rollouts(overlong, rollout(spans=spans)) == [0.0]
    # (1,2) twice of (1,2) (2,3) (3,1) (1,2); no pair across the tool's text.
    repeated = RepetitionPenalty(RepetitionPenaltyConfig(ngram_size=2))
    assert score_rollouts(repeated, rollout(spans=spans)) == [-0.25]


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [([1, 2, 3, 4], 0.0), ([5] * 5, -0.75), ([1, 2, 1, 2], -1 / 3), ([1], 0.0), ([], 0.0)],
)
def test_repetition_penalty(
    tokens: list[int], expected: float, rollout: Make, score_rollouts: Make
) -> None:
    provider = RepetitionPenalty(RepetitionPenaltyConfig(ngram_size=2))
    (found,) = score_rollouts(provider, rollout(tokens=tokens))
    assert found == pytest.approx(expected)
    assert math.copysign(1, found) == (1 if expected == 0 else -1), "-0.0 would be logged"


@pytest.mark.parametrize(
    ("text", "tokens", "expected"),
    [
        (RIGHT, 0, 1.0),
        (RIGHT, 50, 0.75),
        (RIGHT, 100, 0.5),
        (RIGHT, 200, 0.5),
        (WRONG, 0, -1.0),
        (WRONG, 50, -0.75),
        (WRONG, 100, -0.5),
        (WRONG, 150, -0.5),
    ],
)
def test_cosine_length(
    text: str, tokens: int, expected: float, rollout: Make, score_rollouts: Make
) -> None:
    provider = CosineLength(CosineLengthConfig(max_tokens=100))
    one = rollout(text, {"answer": "$2$"}, tokens=[7] * tokens)
    assert score_rollouts(provider, one) == [pytest.approx(expected)]


@pytest.mark.parametrize("provider", [CosineLength(CosineLengthConfig(max_tokens=9)), Length()])
def test_nobody_knows_the_answer(provider: Any, rollout: Make, score_rollouts: Make) -> None:
    rollouts = [rollout(RIGHT, {"answer": None}, tokens=[1] * n) for n in (1, 2)]
    assert score_rollouts(provider, *rollouts) == [None, None]
    with pytest.raises(DataError, match="answer"):
        score_rollouts(provider, rollout(RIGHT, {}))


def test_kimi_length_within_each_group(rollout: Make, score_rollouts: Make) -> None:
    def one(group: int, sample: int, tokens: int, text: str) -> Any:
        return rollout(text, {"answer": "$2$"}, tokens=[1] * tokens, group=group, sample=sample)

    provider = Length()
    assert isinstance(provider, RewardProvider)
    first = [one(0, 0, 10, RIGHT), one(0, 1, 20, RIGHT), one(0, 2, 30, RIGHT), one(0, 3, 10, WRONG)]
    second = [one(1, 0, 500, RIGHT), one(1, 1, 600, WRONG)]
    expected = [0.5, 0.0, -0.5, 0.0, 0.5, -0.5]
    assert score_rollouts(provider, *first, *second) == expected
    assert score_rollouts(provider, *first) + score_rollouts(provider, *second) == expected
    assert score_rollouts(provider, one(2, 0, 7, RIGHT), one(2, 1, 7, WRONG)) == [0.0, 0.0]


@pytest.mark.parametrize(
    ("check", "right", "wrong"),
    [
        ("exact", "<answer>2</answer>", "2"),
        ("number", "it is 2.0", "it is 3"),
        ("math", RIGHT, "2"),
    ],
)
def test_how_right_is_told_from_wrong(
    check: Any, right: str, wrong: str, rollout: Make, score_rollouts: Make
) -> None:
    rollouts = [
        rollout(text, {"gold": "2"}, tokens=[1] * n) for text, n in ((right, 1), (wrong, 1))
    ]
    cosine = CosineLength(CosineLengthConfig(max_tokens=10**9, check=check, column="gold"))
    assert score_rollouts(cosine, *rollouts) == [pytest.approx(1.0), pytest.approx(-1.0)]
    long = rollout(right, {"gold": "2"}, tokens=[1, 1, 1])
    length = Length(LengthConfig(check=check, column="gold"))
    assert score_rollouts(length, *rollouts, long) == [0.5, 0.0, -0.5]


def test_another_reward_may_decide_what_is_right(rollout: Make, score_rollouts: Make) -> None:
    from grpo_rewards import RegexConfig, RegexMatch

    provider = CosineLength(
        CosineLengthConfig(max_tokens=10**9), check=RegexMatch(RegexConfig(pattern="yes"))
    )
    found = score_rollouts(provider, rollout("oh yes"), rollout("no"))
    assert found == [pytest.approx(1.0), pytest.approx(-1.0)]
