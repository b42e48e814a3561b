"""The suites for losses and advantages: a stranger's file passes, and every broken promise is
found by the check that is about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from grpo_core.testing import AdvantageSuite, LossSuite
from grpo_core.types import ActionTokens, AdvantageRequest, AdvantageResult, LossOutput


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


def of(loss: Callable[[ActionTokens], LossOutput], **attributes: Any) -> LossSuite:
    class Suite(LossSuite):
        def make(self) -> Any:
            vars(loss).update(attributes)
            return loss

    return Suite()


def ratio(tokens: ActionTokens) -> torch.Tensor:
    assert tokens.old_logprobs_N is not None
    return (tokens.logprobs_N - tokens.old_logprobs_N).clamp(max=20).exp()


def test_a_function_of_two_lines_passes() -> None:
    def reinforce(tokens: ActionTokens) -> LossOutput:
        return LossOutput(loss_N=-tokens.advantages_N * tokens.logprobs_N)

    assert failures(of(reinforce, skips_zero_advantage=True)) == set()


def averaged(tokens: ActionTokens) -> LossOutput:
    return LossOutput(loss_N=-(tokens.advantages_N * tokens.logprobs_N).mean())


def looks_at_the_microbatch(tokens: ActionTokens) -> LossOutput:
    advantages_N = tokens.advantages_N - tokens.advantages_N.mean()
    return LossOutput(loss_N=-advantages_N * tokens.logprobs_N)


def reads_undeclared(tokens: ActionTokens) -> LossOutput:
    weight_N = (tokens.logprobs_N.detach() - tokens.sampling_logprobs_N).clamp(max=0).exp()
    return LossOutput(loss_N=-weight_N * tokens.advantages_N * tokens.logprobs_N)


def overflows(tokens: ActionTokens) -> LossOutput:
    assert tokens.old_logprobs_N is not None
    ratio_N = (tokens.logprobs_N - tokens.old_logprobs_N).exp()
    return LossOutput(loss_N=-ratio_N * tokens.advantages_N)


def twice_too_much(tokens: ActionTokens) -> LossOutput:
    return LossOutput(loss_N=-2 * ratio(tokens) * tokens.advantages_N)


def breaks_its_promise(tokens: ActionTokens) -> LossOutput:
    return LossOutput(loss_N=-(tokens.advantages_N + 0.1) * tokens.logprobs_N)


def metric_with_gradient(tokens: ActionTokens) -> LossOutput:
    loss_N = -tokens.advantages_N * tokens.logprobs_N
    return LossOutput(loss_N=loss_N, metrics={"loss/mine": loss_N})


def cancels_in_bf16(tokens: ActionTokens) -> LossOutput:
    loss_N = -tokens.advantages_N * tokens.logprobs_N
    return LossOutput(loss_N=(loss_N + 1e3) - 1e3)


OLD = {"needs": frozenset({"old_logprobs"})}


@pytest.mark.parametrize(
    ("loss", "attributes", "check"),
    [
        (averaged, {}, "test_one_loss_per_token_and_metrics_without_gradient"),
        (
            looks_at_the_microbatch,
            {},
            "test_neither_microbatches_nor_their_order_change_the_gradient",
        ),
        (looks_at_the_microbatch, {}, "test_two_ranks_follow_the_gradient_of_one"),
        (reads_undeclared, {}, "test_it_reads_nothing_that_it_does_not_declare"),
        (overflows, OLD, "test_it_stays_finite_however_far_the_policy_moves"),
        (twice_too_much, OLD, "test_at_ratio_one_it_is_the_policy_gradient"),
        (
            breaks_its_promise,
            {"skips_zero_advantage": True},
            "test_no_advantage_no_gradient_if_promised",
        ),
        (metric_with_gradient, {}, "test_one_loss_per_token_and_metrics_without_gradient"),
        (cancels_in_bf16, {}, "test_bf16_is_close_to_float64"),
        (twice_too_much, {"needs": {"hidden_states"}}, "test_it_declares_what_exists"),
        (twice_too_much, {**OLD, "aggregation": "mean"}, "test_it_declares_what_exists"),
    ],
)
def test_a_broken_promise_of_a_loss_is_found(
    loss: Any, attributes: dict[str, Any], check: str
) -> None:
    vars(loss).clear()
    assert check in failures(of(loss, **attributes))


def mean_off(request: AdvantageRequest) -> torch.Tensor:
    """Within groups, missing ones left out; what a sound advantage begins with."""
    rewards_B = request.rewards_F_B[0]
    groups = int(request.group_B.max()) + 1
    known_B = (~rewards_B.isnan()).double()
    zeros_P = rewards_B.new_zeros(groups)
    sum_P = zeros_P.index_add(0, request.group_B, rewards_B.nan_to_num())
    count_P = zeros_P.index_add(0, request.group_B, known_B).clamp(min=1)
    return rewards_B - (sum_P / count_P)[request.group_B]


def rounded(request: AdvantageRequest) -> AdvantageResult:
    """Ends differences that are only rounding."""
    return AdvantageResult(advantages_B=mean_off(request).nan_to_num().round(decimals=9))


def missing_as_zero(request: AdvantageRequest) -> AdvantageResult:
    rewards_B = request.rewards_F_B[0].nan_to_num()
    return AdvantageResult(advantages_B=rewards_B - rewards_B.mean())


def noisy_zero(request: AdvantageRequest) -> AdvantageResult:
    centred_B = mean_off(request).nan_to_num()
    return AdvantageResult(advantages_B=centred_B / (centred_B.abs().max() + 1e-17))


def by_position(request: AdvantageRequest) -> AdvantageResult:
    steps_B = torch.linspace(1, 1.1, len(request.group_B)).double()
    return AdvantageResult(advantages_B=mean_off(request).nan_to_num() * steps_B)


def upside_down(request: AdvantageRequest) -> AdvantageResult:
    return AdvantageResult(advantages_B=-mean_off(request).nan_to_num())


def raw(request: AdvantageRequest) -> AdvantageResult:
    return AdvantageResult(advantages_B=request.rewards_F_B[0].nan_to_num())


def single(request: AdvantageRequest) -> AdvantageResult:
    return AdvantageResult(advantages_B=mean_off(request).nan_to_num().float())


def advantage_suite(advantage: Any, **attributes: Any) -> AdvantageSuite:
    class Suite(AdvantageSuite):
        def make(self) -> Any:
            vars(advantage).update(attributes)
            return advantage

    return Suite()


def test_a_sound_advantage_passes() -> None:
    assert failures(advantage_suite(rounded)) == set()


@pytest.mark.parametrize(
    ("advantage", "check"),
    [
        (missing_as_zero, "test_a_missing_reward_takes_no_part"),
        (missing_as_zero, "test_equal_rewards_carry_no_signal"),
        (noisy_zero, "test_equal_rewards_carry_no_signal"),
        (by_position, "test_the_order_of_rollouts_changes_nothing"),
        (upside_down, "test_a_better_reward_is_never_worth_less"),
        (raw, "test_a_constant_changes_nothing"),
        (single, "test_one_number_per_rollout_or_one_per_token"),
        (
            lambda request: AdvantageResult(advantages_B=mean_off(request)),
            "test_nothing_scored_is_no_signal",
        ),
    ],
)
def test_a_broken_promise_of_an_advantage_is_found(advantage: Any, check: str) -> None:
    assert check in failures(advantage_suite(advantage))


def test_a_group_that_is_too_small_must_be_refused() -> None:
    suite = advantage_suite(lambda request: rounded(request), min_group_size=2)
    assert failures(suite) == {"test_groups_too_small_to_compare_are_refused"}
