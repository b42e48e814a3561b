"""What must not change the gradient: padding, order, microbatches, ranks (float64)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo_core import ModelSettings, Policy
from grpo_core.batching import RolloutBatch, plan_weights
from grpo_core.types import Rollout

MAX_TOKENS = 10


@pytest.fixture(scope="module", params=["padded", "packed", "prefix-tree"])
def policy(
    tiny_model: Path, exact_norms: Callable[..., Any], request: pytest.FixtureRequest
) -> Policy:
    policy = Policy(ModelSettings(path=str(tiny_model), dtype="float64", layout=request.param))
    exact_norms(policy.model)
    policy.prepare(optimizer_steps=1, temperature=0.9, tokens_per_microbatch=10**6)
    return policy


@pytest.fixture
def rollouts(make_rollout: Callable[..., Rollout]) -> list[Rollout]:
    """Ragged on purpose: one-token prompts, an empty completion, text of an environment."""
    return [
        make_rollout((5, 6, 7), (8, 9, 10, 11), group=0, sample=0),
        make_rollout((5, 6, 7), (8,), group=0, sample=1),
        make_rollout((12,), (13, 14, 15, 16, 17, 18, 19), group=1, sample=0, inserted=(2, 3)),
        make_rollout((12,), (), group=1, sample=1),
        make_rollout((20, 21, 22, 23, 24, 25), (26, 27), group=2, sample=0),
        make_rollout((20, 21, 22, 23, 24, 25), (28, 29, 30, 31, 32), group=2, sample=1),
    ]


ADVANTAGES = torch.tensor([1.0, -0.5, 0.7, 2.0, 0.0, -1.3], dtype=torch.float64)


def gradient(
    policy: Policy,
    rollouts: Sequence[Rollout],
    advantages: torch.Tensor,
    *,
    aggregation: str = "token-mean",
    budget: int = 10**6,
    totals: list[int] | None = None,
) -> torch.Tensor:
    """The flat gradient of one optimizer step of REINFORCE; ``totals`` plays other ranks."""
    policy._tokens_per_microbatch = budget
    plan = [tuple(range(len(rollouts)))]
    weights = plan_weights(
        plan,
        [r.action_count for r in rollouts],
        aggregation,
        max_tokens=MAX_TOKENS,
        ranks=1,
        sum_over_ranks=lambda local: totals or local,
    )
    batch = RolloutBatch(
        rollouts=rollouts,
        advantages=[a.expand(r.action_count) for a, r in zip(advantages, rollouts, strict=True)],
        ref_logprobs=None,
        plan=plan,
        weights=weights,
    )
    policy.model.zero_grad()
    for minibatch in batch.minibatches():
        for micro in policy.microbatches(minibatch):
            tokens = policy.token_logprobs(micro)
            policy.backward((-tokens.advantages_N * tokens.logprobs_N * micro.weights_N).sum())
    parameters = [p for p in policy.model.parameters() if p.grad is not None]
    return torch.cat([p.grad.flatten() for p in parameters])


def by_hand(
    policy: Policy, rollouts: Sequence[Rollout], weigh: Callable[[int, int], float]
) -> torch.Tensor:
    """The same gradient, one unpadded rollout at a time through the model's own logits."""
    policy.model.zero_grad()
    loss = torch.zeros((), dtype=torch.float64)
    for i, rollout in enumerate(rollouts):
        if not rollout.action_count:
            continue
        ids = torch.tensor([[*rollout.prompt_ids, *rollout.token_ids]])
        logp = (policy.model(input_ids=ids).logits[0] / 0.9).log_softmax(-1)
        for position in rollout.action_positions:
            at = len(rollout.prompt_ids) + position
            weight = weigh(i, rollout.action_count)
            loss = loss - weight * ADVANTAGES[i] * logp[at - 1, ids[0, at]]
    loss.backward()
    return torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None])


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("aggregation", "weigh"),
    [
        # DAPO (2503.14476, eq. 8) and BNPO: all tokens of the step alike. 4+1+5+0+2+5 = 17.
        ("token-mean", lambda i, n: 1 / 17),
        # GRPO (2402.03300, eq. 3): the mean over rollouts of means over tokens.
        ("sequence-mean", lambda i, n: 1 / (6 * n)),
        # Dr. GRPO (2503.20783, listing 1): the sum over a constant.
        ("constant", lambda i, n: 1 / (6 * MAX_TOKENS)),
    ],
)
def test_aggregations_equal_their_papers(
    policy: Policy, rollouts: list[Rollout], aggregation: str, weigh: Callable[[int, int], float]
) -> None:
    expected = by_hand(policy, rollouts, weigh)
    close(gradient(policy, rollouts, ADVANTAGES, aggregation=aggregation), expected)


@pytest.mark.parametrize("aggregation", ["token-mean", "sequence-mean", "constant"])
@pytest.mark.parametrize("budget", [1, 9, 20, 40])
def test_microbatch_split_does_not_change_the_gradient(
    policy: Policy, rollouts: list[Rollout], aggregation: str, budget: int
) -> None:
    whole = gradient(policy, rollouts, ADVANTAGES, aggregation=aggregation)
    split = gradient(policy, rollouts, ADVANTAGES, aggregation=aggregation, budget=budget)
    assert whole.abs().max() > 1e-3
    close(split, whole)


@pytest.mark.parametrize("aggregation", ["token-mean", "sequence-mean", "constant"])
def test_row_order_does_not_change_the_gradient(
    policy: Policy, rollouts: list[Rollout], aggregation: str
) -> None:
    order = [4, 2, 5, 0, 3, 1]
    shuffled = gradient(
        policy, [rollouts[i] for i in order], ADVANTAGES[order], aggregation=aggregation
    )
    close(shuffled, gradient(policy, rollouts, ADVANTAGES, aggregation=aggregation))


@pytest.mark.parametrize("aggregation", ["token-mean", "sequence-mean", "constant"])
def test_data_parallel_split_does_not_change_the_gradient(
    policy: Policy, rollouts: list[Rollout], aggregation: str
) -> None:
    totals = [17, 6]
    first, second = (
        gradient(policy, rollouts[s], ADVANTAGES[s], aggregation=aggregation, totals=totals)
        for s in (slice(0, 2), slice(2, 6))
    )
    close(first + second, gradient(policy, rollouts, ADVANTAGES, aggregation=aggregation))


def test_logprobs_without_gradient_equal_the_models_own(
    policy: Policy, rollouts: list[Rollout]
) -> None:
    for budget in (1, 15, 10**6):
        policy._tokens_per_microbatch = budget
        for rollout, found in zip(rollouts, policy.logprobs(rollouts), strict=True):
            ids = torch.tensor([[*rollout.prompt_ids, *rollout.token_ids]])
            with torch.no_grad():
                logp = (policy.model(input_ids=ids).logits[0] / 0.9).log_softmax(-1)
            at = [len(rollout.prompt_ids) + p for p in rollout.action_positions]
            close(found.double(), logp[[a - 1 for a in at], ids[0, at]])


def test_only_action_tokens_are_scored(policy: Policy, rollouts: list[Rollout]) -> None:
    [inputs] = policy._layout.microbatches(rollouts, tokens_per_microbatch=10**6)
    scored = sorted(inputs.target_N.tolist())
    expected = [r.token_ids[p] for r in rollouts for p in r.action_positions]
    assert scored == sorted(expected)
    assert 15 not in scored  # written by an environment
