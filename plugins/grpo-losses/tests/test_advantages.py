"""Advantages against TRL's formulas and against plain arithmetic, NaN included."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from grpo_core.errors import ConfigError
from grpo_core.types import AdvantageRequest
from grpo_losses import (
    AdvantageConfig,
    GdpoAdvantage,
    LeaveOneOutConfig,
    ReinforcePlusPlusAdvantage,
    ReinforcePlusPlusBaselineAdvantage,
    RlooAdvantage,
    ScaledConfig,
)
from grpo_losses.advantages import (
    BatchAdvantage,
    CentredAdvantage,
    GroupAdvantage,
    UnscaledAdvantage,
)

nan = math.nan
VARIANTS = [GroupAdvantage, BatchAdvantage, UnscaledAdvantage]


def request(
    rewards_F_B: list[list[float]] | Tensor, group_size: int, weights: list[float] | None = None
) -> AdvantageRequest:
    rewards = torch.as_tensor(rewards_F_B, dtype=torch.float64)
    rollouts = rewards.shape[1]
    return AdvantageRequest(
        rewards_F_B=rewards,
        weights_F=torch.tensor(weights or [1.0] * len(rewards), dtype=torch.float64),
        group_B=torch.arange(rollouts) // group_size,
        action_count_B=torch.ones(rollouts, dtype=torch.int64),
    )


def nanstd(x: Tensor, dim: int | None = None) -> Tensor:
    """Bessel-corrected, NaN below two values, as TRL's helper."""
    keep = x.dim() - 1 if dim is None else dim
    x = x.flatten() if dim is None else x
    keep = 0 if dim is None else keep
    mean = x.nanmean(keep, keepdim=True)
    count = (~x.isnan()).sum(keep)
    variance = ((x - mean) ** 2).nanmean(keep) * count / (count - 1)
    return variance.where(count > 1, torch.nan).sqrt()


def trl(request: AdvantageRequest, group_size: int, scale: str) -> Tensor:
    """TRL 1.16's "sum_then_normalize", in float64."""
    weighted = request.rewards_F_B.T * request.weights_F
    total = weighted.nansum(1).masked_fill(weighted.isnan().all(1), nan)
    grouped = total.view(-1, group_size)
    advantages = (grouped - grouped.nanmean(1, keepdim=True)).flatten()
    if scale == "group":
        advantages = advantages / (nanstd(grouped, 1).repeat_interleave(group_size) + 1e-4)
    if scale == "batch":
        advantages = advantages / (nanstd(total) + 1e-4)
    return advantages.nan_to_num(nan=0.0)


@pytest.mark.parametrize(
    ("advantage", "scale"),
    [(GroupAdvantage(), "group"), (BatchAdvantage(), "batch"), (UnscaledAdvantage(), "none")],
)
@pytest.mark.parametrize("missing", [0.0, 0.2, 0.7])
@pytest.mark.parametrize("seed", range(5))
def test_equals_trl(advantage: CentredAdvantage, scale: str, missing: float, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    rewards = torch.rand(3, 6 * 4, generator=rng, dtype=torch.float64)
    rewards[torch.rand(3, 6 * 4, generator=rng) < missing] = nan
    asked = request(rewards, 4, [1.0, 0.2, -0.5])
    result = advantage(asked)
    assert result.advantages_B.dtype == torch.float64
    torch.testing.assert_close(result.advantages_B, trl(asked, 4, scale), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("make", VARIANTS)
@given(
    reward=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=9),
    group_size=st.integers(2, 17),
    missing=st.integers(0, 16),
)
def test_equal_rewards_give_exactly_zero(
    make: type[CentredAdvantage], reward: list[float], group_size: int, missing: int
) -> None:
    rewards = torch.tensor(reward).double()[:, None].repeat(1, group_size)
    rewards[:, : min(missing, group_size - 1)] = nan
    rewards = torch.cat([rewards, torch.rand(len(reward), group_size).double()], 1)
    advantages = make()(request(rewards, group_size, [0.1] * len(reward))).advantages_B
    assert (advantages[:group_size] == 0).all()
    assert advantages.isfinite().all()


def test_missing_outcomes_take_no_part() -> None:
    with_nan = GroupAdvantage()(request([[1, 0, nan, 1, 0, 0, 1, 0]], 4)).advantages_B
    mean, std = 2 / 3, statistics.stdev([1, 0, 1])
    expected = [(r - mean) / (std + 1e-4) for r in (1, 0, mean, 1)]
    assert with_nan[:4].tolist() == pytest.approx(expected)
    assert with_nan[2] == 0


def test_a_provider_that_abstains_leaves_the_others() -> None:
    result = UnscaledAdvantage()(request([[1, 1], [nan, 1]], 2, [1.0, 0.5]))
    assert result.advantages_B.tolist() == [-0.25, 0.25]


def test_a_watching_provider_does_not_turn_a_missing_reward_into_zero() -> None:
    rewards = [[1, 0, nan], [5, 5, 5]]
    result = UnscaledAdvantage()(request(rewards, 3, [1.0, 0.0]))
    assert result.advantages_B.tolist() == [0.5, -0.5, 0.0]


@pytest.mark.parametrize("make", VARIANTS)
def test_a_group_of_one_value_and_a_group_of_none_are_silent(make: type[CentredAdvantage]) -> None:
    advantages = make()(request([[nan, 3, nan, nan, 0, 1]], 2)).advantages_B
    assert advantages[:4].tolist() == [0, 0, 0, 0]
    assert advantages[4] < 0 < advantages[5]


@pytest.mark.parametrize("make", VARIANTS)
def test_nothing_scored_at_all_is_zero(make: type[CentredAdvantage]) -> None:
    assert make()(request([[nan] * 4], 2)).advantages_B.tolist() == [0, 0, 0, 0]


def test_batch_scale_keeps_the_difference_between_prompts() -> None:
    """A group that spreads ten times as far keeps ten times the advantage."""
    rewards = [[0, 1, 0, 10]]
    batch = BatchAdvantage()(request(rewards, 2)).advantages_B
    group = GroupAdvantage()(request(rewards, 2)).advantages_B
    assert batch[3] / batch[1] == pytest.approx(10)
    assert group[3] / group[1] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("make", VARIANTS)
def test_groups_need_not_be_of_one_size_or_in_order(make: type[CentredAdvantage]) -> None:
    rewards = torch.tensor([1.0, 0.0, 4.0, 2.0, 3.0]).double()
    order = torch.tensor([4, 0, 3, 1, 2])
    group_B = torch.tensor([0, 0, 1, 1, 1])

    def ask(index: Tensor) -> Tensor:
        asked = AdvantageRequest(
            rewards_F_B=rewards[None, index],
            weights_F=torch.ones(1).double(),
            group_B=group_B[index],
            action_count_B=torch.ones(5, dtype=torch.int64),
        )
        return make()(asked).advantages_B

    torch.testing.assert_close(ask(order), ask(torch.arange(5))[order], rtol=1e-14, atol=0)


@pytest.mark.parametrize("make", VARIANTS)
def test_groups_of_one_are_refused(make: type[CentredAdvantage]) -> None:
    with pytest.raises(ConfigError, match=r"train.group_size is 1, .* every advantage would be 0"):
        make()(request([[1, 0]], 1))


def test_leave_one_out_by_hand() -> None:
    rewards = [1.0, 4.0, nan, 2.0, 3.0, nan, nan, nan]
    found = RlooAdvantage()(request([rewards], 4)).advantages_B
    assert found is not None
    others = {0: (4 + 2) / 2, 1: (1 + 2) / 2, 3: (1 + 4) / 2}
    expected = [rewards[i] - others[i] if i in others else 0.0 for i in range(8)]
    assert found.tolist() == pytest.approx(expected)


@given(st.lists(st.floats(-5, 5), min_size=8, max_size=8), st.booleans())
def test_leave_one_out_is_the_centred_reward_times_n_over_n_minus_1(
    rewards: list[float], scale: bool
) -> None:
    asked = request([rewards], 4)
    loo = RlooAdvantage(LeaveOneOutConfig(scale=scale))(asked).advantages_B
    plain = UnscaledAdvantage()(asked).advantages_B
    assert loo is not None
    assert plain is not None
    expected = plain * 4 / 3
    if scale:
        expected = expected / (expected.std() + 1e-4)
    torch.testing.assert_close(loo, expected, rtol=1e-9, atol=1e-12)


def test_gdpo_lets_no_provider_drown_another() -> None:
    """The same pattern from two providers, one a hundred times as large, cancels to nothing under
    a sum but counts alike here."""
    pattern, opposite = [1.0, 0.0, 0.0, 1.0], [0.0, 100.0, 100.0, 0.0]
    found = GdpoAdvantage()(request([pattern, opposite], 4)).advantages_B
    summed = GroupAdvantage()(request([pattern, opposite], 4)).advantages_B
    assert found is not None
    assert summed is not None
    assert found.abs().max() < 1.0  # the small one's epsilon is felt, nothing else is left
    assert summed.tolist() == pytest.approx([-0.866, 0.866, 0.866, -0.866], abs=1e-3)
    alike = GdpoAdvantage()(request([pattern, [0.0, 0.0, 100.0, 100.0]], 4)).advantages_B
    assert alike is not None
    assert alike[3] == pytest.approx(-alike[1].item(), rel=1e-9)
    assert abs(alike[0]) < 1e-3
    assert abs(alike[2]) < 1e-3


@pytest.mark.parametrize("make", [GroupAdvantage, BatchAdvantage])
def test_the_population_deviation_divides_by_n(make: Any) -> None:
    rewards = [1.0, 0.0, 0.5, 4.0]
    found = make(ScaledConfig(std="population"))(request([rewards], 4)).advantages_B
    mean = statistics.mean(rewards)
    expected = [(r - mean) / (statistics.pstdev(rewards) + 1e-4) for r in rewards]
    assert found.tolist() == pytest.approx(expected)


def per_token(lengths: list[int], rewards: list[float], log_ratios: Any = None) -> AdvantageRequest:
    return AdvantageRequest(
        rewards_F_B=torch.tensor([rewards]).double(),
        weights_F=torch.ones(1).double(),
        group_B=torch.arange(len(rewards)) // 2,
        action_count_B=torch.tensor(lengths),
        ref_log_ratios=log_ratios,
    )


@pytest.mark.parametrize("baseline", [False, True])
@pytest.mark.parametrize("kl_coef", [0.0, 0.2])
def test_reinforce_pp_from_its_formula(baseline: bool, kl_coef: float) -> None:
    """A_t = r - b - kl_coef * sum over s >= t of k1_s, whitened over all tokens of the step."""
    lengths, rewards = [3, 1, 0, 4], [1.0, 0.0, 0.5, -1.0]
    rng = torch.Generator().manual_seed(0)
    ratios = [torch.randn(n, generator=rng, dtype=torch.float64) for n in lengths]
    make = ReinforcePlusPlusBaselineAdvantage if baseline else ReinforcePlusPlusAdvantage
    asked = per_token(lengths, rewards, ratios if kl_coef else None)
    found = make(ScaledConfig(kl_coef=kl_coef))(asked).token_advantages
    returns = []
    for i, length in enumerate(lengths):
        off = (rewards[i // 2 * 2] + rewards[i // 2 * 2 + 1]) / 2 if baseline else 0.0
        for t in range(length):
            later = sum(float(ratios[i][s]) for s in range(t, length))
            returns.append(rewards[i] - off - kl_coef * later)
    mean, std = statistics.mean(returns), statistics.stdev(returns)
    expected = [(x - mean) / (std + 1e-4) for x in returns]
    assert found is not None
    assert torch.cat(list(found)).tolist() == pytest.approx(expected)
    assert [len(x) for x in found] == lengths


@pytest.mark.parametrize("deviation", ["population", "sample"])
@pytest.mark.parametrize("baseline", [False, True])
@given(
    drawn=st.lists(
        st.tuples(st.integers(0, 6), st.floats(-2, 2), st.floats(0.05, 1)), min_size=2, max_size=6
    )
    .map(lambda rows: rows[: len(rows) // 2 * 2])
    .filter(lambda rows: sum(length for length, _, _ in rows) > 2)
)
def test_reinforce_pp_is_what_padding_and_a_mask_give(
    baseline: bool, deviation: Any, drawn: list[tuple[int, float, float]]
) -> None:
    """The way of OpenRLHF (mean square) and verl (Bessel): rewards on the last token of each
    padded row, returns by a loop from the back, whitened under the mask."""
    lengths = [length for length, _, _ in drawn]
    rewards = torch.tensor([reward for _, reward, _ in drawn]).double()
    kl = [slope * torch.arange(1, n + 1).double().sin() for n, _, slope in drawn]
    make = ReinforcePlusPlusBaselineAdvantage if baseline else ReinforcePlusPlusAdvantage
    asked = per_token(lengths, rewards.tolist(), kl)
    found = make(ScaledConfig(kl_coef=0.3, std=deviation))(asked).token_advantages
    assert found is not None

    if baseline:
        rewards = (rewards.view(-1, 2) - rewards.view(-1, 2).mean(1, keepdim=True)).flatten()
    width = max(lengths)
    per_step, mask = torch.zeros(len(drawn), width).double(), torch.zeros(len(drawn), width).bool()
    for row, length in enumerate(lengths):
        per_step[row, :length] = -0.3 * kl[row]
        mask[row, :length] = True
        if length:
            per_step[row, length - 1] += rewards[row]
    returns, running = torch.zeros_like(per_step), torch.zeros(len(drawn)).double()
    for t in reversed(range(width)):
        running = per_step[:, t] + running
        returns[:, t] = running
    count = mask.sum()
    mean = (returns * mask).sum() / count
    variance = ((returns - mean).square() * mask).sum() / count
    if deviation == "sample":
        variance = variance * count / (count - 1)
    spread = variance.sqrt()
    whitened = (returns - mean) / spread * (spread / (spread + 1e-4))
    wanted = whitened[mask] if spread > 1e-12 else torch.zeros(int(count)).double()
    torch.testing.assert_close(torch.cat(list(found)), wanted, rtol=1e-7, atol=1e-9)


def test_a_kl_comes_off_the_reward_before_anything_else() -> None:
    ratios = [torch.tensor([0.5, 0.25]).double(), torch.zeros(3).double()]
    found = UnscaledAdvantage(AdvantageConfig(kl_coef=0.4))(per_token([2, 3], [1.0, 1.0], ratios))
    assert found.advantages_B is not None
    assert found.advantages_B.tolist() == pytest.approx([-0.15, 0.15])
    with pytest.raises(ConfigError, match=r"advantage\.kl_coef is above 0 but there are no"):
        GroupAdvantage(ScaledConfig(kl_coef=0.4))(per_token([2, 3], [1.0, 0.0]))


def test_no_rollouts_at_all() -> None:
    assert GroupAdvantage()(request(torch.zeros(1, 0), 2)).advantages_B.shape == (0,)
