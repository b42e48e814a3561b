"""Estimates over repeated samples against enumeration, simulation and tabulated values."""

from __future__ import annotations

import random
from itertools import combinations
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_core.estimators import Z95, majority, mean_interval, pass_at_k


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_pass(passed: list[bool], data) -> None:
    k = data.draw(st.integers(1, len(passed)))
    subsets = list(combinations(passed, k))
    expected = sum(map(any, subsets)) / len(subsets)
    assert pass_at_k(len(passed), sum(passed), k) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("k", [0, 4])
def test_pass_at_k_of_more_samples_than_there_are(k: int) -> None:
    with pytest.raises(ValueError, match=f"pass@{k} cannot be estimated from 3 samples"):
        pass_at_k(3, 1, k)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["7", "5", "5"], 1),
        (["7", "5"], 0),
        (["5", "7", "7", "5"], 0),
        ([None, None, "3"], 2),
        ([None], None),
        ([], None),
    ],
)
def test_majority(answers: list[str | None], expected: int | None) -> None:
    assert majority(answers) == expected


@pytest.mark.parametrize(
    ("passed", "of", "low", "high"),
    # Newcombe (1998), Statistics in Medicine 17, table I, method 3: Wilson without correction.
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_shares_have_wilsons_interval(passed: int, of: int, low: float, high: float) -> None:
    values = [1.0] * passed + [0.0] * (of - passed)
    mean, interval = mean_interval(values)
    assert mean == passed / of
    assert interval == pytest.approx((low, high), abs=6e-5)


def test_other_means_have_the_normal_interval() -> None:
    assert pytest.approx(NormalDist().inv_cdf(0.975)) == Z95
    mean, interval = mean_interval([-1.0, 0.0, 4.0])
    # Mean 1, sample variance 7, standard error sqrt(7 / 3).
    assert mean == 1.0
    assert interval == pytest.approx((1 - Z95 * (7 / 3) ** 0.5, 1 + Z95 * (7 / 3) ** 0.5))
    assert mean_interval([-1.0]) == (-1.0, None)


def test_intervals_hold_what_they_promise() -> None:
    """Prompts of different difficulty, four samples each: about 95 % of intervals have the mean."""
    rng = random.Random(0)
    held = 0
    for _ in range(400):
        difficulties = [rng.betavariate(0.5, 1.0) for _ in range(60)]
        values = [sum(rng.random() < p for _ in range(4)) / 4 for p in difficulties]
        _, interval = mean_interval(values)
        assert interval is not None
        held += interval[0] <= 1 / 3 <= interval[1]
    # Three standard errors of a share of 0.95 of 400.
    assert held / 400 == pytest.approx(0.95, abs=0.033)
