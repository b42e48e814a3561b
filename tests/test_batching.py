"""Minibatch plans and prompt order: whole groups, each once per pass, a function of the seed."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grpo_core.aggregation import token_weights
from grpo_core.batching import permutation, plan_minibatches, plan_weights
from grpo_core.errors import ConfigError
from grpo_core.trainer.prompts import PromptStream
from grpo_core.types import Aggregation, Prompt


@given(
    per_minibatch=st.integers(1, 4),
    minibatches=st.integers(1, 4),
    passes=st.integers(1, 3),
    size=st.integers(1, 5),
    seed=st.integers(0, 10),
)
def test_every_pass_deals_every_group_once(
    per_minibatch: int, minibatches: int, passes: int, size: int, seed: int
) -> None:
    count = per_minibatch * minibatches
    groups = [g for g in range(count) for _ in range(size)]
    plan = plan_minibatches(groups, minibatches=minibatches, passes=passes, seed=(seed,))
    assert len(plan) == passes * minibatches
    for current in range(passes):
        steps = plan[current * minibatches : (current + 1) * minibatches]
        assert Counter(row for rows in steps for row in rows) == Counter(range(len(groups)))
        for rows in steps:
            sizes = Counter(groups[row] for row in rows)
            assert set(sizes.values()) == {size}
            assert len(sizes) == per_minibatch
    again = plan_minibatches(groups, minibatches=minibatches, passes=passes, seed=(seed,))
    assert plan == again


def test_permutations_of_neighbouring_seeds_are_unrelated() -> None:
    orders = [tuple(permutation(50, (seed, epoch))) for seed in range(20) for epoch in range(20)]
    assert len(set(orders)) == len(orders)
    # 400 permutations of 50: each position holds each value 8 times on average, sd 2.8.
    first = Counter(order[0] for order in orders)
    assert max(first.values()) < 8 + 6 * 2.8


@given(st.integers(1, 7), st.integers(1, 5), st.integers(0, 3))
def test_every_epoch_shows_every_prompt_once(total: int, per_step: int, seed: int) -> None:
    prompts = [Prompt(id=str(i), content="x") for i in range(total)]
    stream = PromptStream(prompts, per_step=per_step, seed=seed)
    drawn = [i for step in range(3 * total) for i in stream.indices(step)]
    for epoch in range(len(drawn) // total):
        assert sorted(drawn[epoch * total : (epoch + 1) * total]) == list(range(total))
    # A resumed run starts in the middle, in whatever order it asks.
    fresh = PromptStream(prompts, per_step=per_step, seed=seed)
    assert fresh.indices(2 * total) == stream.indices(2 * total)


def test_an_unknown_aggregation_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="token-mean, sequence-mean, sequence-sum, constant"):
        token_weights(
            "mean",  # type: ignore[arg-type]
            torch.tensor([1]),
            total_tokens=1,
            total_rollouts=1,
            max_tokens=1,
        )


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("token-mean", [1 / 5, 0, 1 / 5]),
        ("sequence-mean", [1 / 6, 0, 1 / 9]),
        ("sequence-sum", [1 / 3, 0, 1 / 3]),
        ("constant", [1 / 30, 0, 1 / 30]),
    ],
)
def test_masked_rollouts_weigh_nothing_and_count_as_rollouts_only(
    aggregation: Aggregation, expected: list[float]
) -> None:
    (weights,) = plan_weights(
        [(0, 1, 2)],
        [2, 4, 3],
        aggregation,
        max_tokens=10,
        ranks=1,
        sum_over_ranks=lambda local: local,
        masked=[False, True, False],
    )
    assert weights.loss_B.tolist() == pytest.approx(expected)
    assert weights.mean_B.tolist() == pytest.approx([1 / 5, 0, 1 / 5])
