"""Advantages against the sums of the paper, and what happens to rewards that are not there."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from grpo_core.types import AdvantageRequest
from grpo_ppo import Gae, GaeConfig
from grpo_ppo.gae import estimate

numbers = st.floats(-3, 3)


def double(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@given(st.lists(st.tuples(numbers, numbers), max_size=7), st.floats(0.1, 1), st.floats(0, 1))
def test_the_double_sum_of_the_paper(
    pairs: list[tuple[float, float]], gamma: float, lam: float
) -> None:
    rewards, values = [r for r, _ in pairs], [v for _, v in pairs]
    after = [*values[1:], 0.0][: len(values)]
    deltas = [r + gamma * n - v for r, n, v in zip(rewards, after, values, strict=True)]
    expected = [
        sum((gamma * lam) ** i * delta for i, delta in enumerate(deltas[t:]))
        for t in range(len(deltas))
    ]
    found = estimate(double(rewards), double(values), gamma=gamma, lam=lam)
    torch.testing.assert_close(found, double(expected), rtol=1e-12, atol=1e-12)


def test_lambda_one_is_the_return_less_the_value() -> None:
    found = estimate(double([0.0, 1.0, 2.0]), double([5.0, -1.0, 0.5]), gamma=1.0, lam=1.0)
    torch.testing.assert_close(found, double([3.0 - 5.0, 3.0 + 1.0, 2.0 - 0.5]))


def request(rewards_F_B: list[list[float]], counts: list[int], **more: object) -> AdvantageRequest:
    return AdvantageRequest(
        rewards_F_B=double(rewards_F_B),  # type: ignore[arg-type]
        weights_F=double([1.0] * len(rewards_F_B)),
        group_B=torch.arange(len(counts)),
        action_count_B=torch.tensor(counts),
        **more,  # type: ignore[arg-type]
    )


def test_the_reward_stands_at_the_end_and_each_token_pays_for_its_distance() -> None:
    gae = Gae(GaeConfig(kl_coef=0.5, lam=1.0, whiten=False))
    asked = request(
        [[2.0, 1.0]],
        [2, 1],
        values=[double([0.0, 0.0]), double([0.25])],
        ref_log_ratios=[double([0.2, -0.4]), double([1.0])],
    )
    result = gae(asked)
    assert result.token_advantages is not None
    assert result.value_targets is not None
    torch.testing.assert_close(result.token_advantages[0], double([2.0 - 0.1 + 0.2, 2.0 + 0.2]))
    torch.testing.assert_close(result.token_advantages[1], double([1.0 - 0.5 - 0.25]))
    torch.testing.assert_close(result.value_targets[1], double([1.0 - 0.5]))


def test_whitened_over_the_tokens_that_have_a_reward() -> None:
    nan = float("nan")
    values = [double([0.1, 0.2, 0.3]), double([0.4]), double([0.5, 0.6]), double([])]
    result = Gae(GaeConfig(kl_coef=0.0))(
        request([[1.0, nan, -1.0, 2.0]], [3, 1, 2, 0], values=values)
    )
    assert result.token_advantages is not None
    assert result.value_targets is not None
    first, unknown, last, empty = result.token_advantages
    both = torch.cat([first, last])
    assert float(both.mean()) == pytest.approx(0, abs=1e-12)
    assert float(both.std()) == pytest.approx(1, abs=1e-6)
    assert unknown.tolist() == [0.0]
    assert result.value_targets[1].tolist() == [0.4]
    assert empty.shape == (0,)
