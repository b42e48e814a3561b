"""Terms against closed forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grpo_core.numerics import bounded, kl_k3
from grpo_losses.terms import kl

finite = st.floats(-1e4, 1e4)


@given(finite, finite)
def test_k3_is_not_negative_and_pulls_towards_the_reference(logprob: float, ref: float) -> None:
    leaf = torch.tensor([logprob]).double().requires_grad_()
    k3 = kl_k3(leaf, torch.tensor([ref]).double())
    k3.sum().backward()
    assert (k3 >= 0).all()
    assert leaf.grad is not None
    # Minimising moves against the gradient; past the bound there is none, never the wrong one.
    assert (leaf.grad * (logprob - ref) >= 0).all()


@pytest.fixture
def two_policies() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a policy, and log-probs of a reference, over six tokens."""
    generator = torch.Generator().manual_seed(0)
    logits, reference = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), reference.log_softmax(-1)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_k1_and_k3_average_to_the_exact_kl(
    estimator: Any, two_policies: tuple[torch.Tensor, torch.Tensor]
) -> None:
    policy, reference = two_policies[0].log_softmax(-1), two_policies[1]
    exact = (policy.exp() * (policy - reference)).sum()
    torch.testing.assert_close((policy.exp() * kl(estimator, policy, reference)).sum(), exact)


@pytest.mark.parametrize(
    ("estimator", "corrected", "right"),
    [("k1", True, True), ("k3", True, True), ("k2", False, True), ("k3", False, False)],
)
def test_which_gradient_is_that_of_the_kl(
    estimator: Any,
    corrected: bool,
    right: bool,
    two_policies: tuple[torch.Tensor, torch.Tensor],
) -> None:
    """Averaged over tokens of the policy; the ratio is 1 in value and has a gradient."""
    logits, reference = two_policies
    policy = logits.log_softmax(-1)
    (exact,) = torch.autograd.grad(
        (policy.exp() * (policy - reference)).sum(), logits, retain_graph=True
    )
    each = kl(estimator, policy, reference)
    if corrected:
        each = each * (policy - policy.detach()).exp()
    (found,) = torch.autograd.grad((policy.exp().detach() * each).sum(), logits)
    assert torch.allclose(found, exact, rtol=1e-10, atol=1e-12) == right


def test_k3_keeps_its_digits_when_the_policies_are_close() -> None:
    q = torch.tensor([1e-4], dtype=torch.float32)
    value = kl_k3(-q, torch.zeros(1)).double()
    torch.testing.assert_close(value, q.double() ** 2 / 2, rtol=1e-2, atol=0)


def test_the_bound_is_out_of_the_way_of_real_ratios() -> None:
    x = torch.tensor([-1e9, -30.0, 0.0, 19.9])
    assert torch.equal(bounded(x), x)


def test_the_entropy_bonus_means_the_same_under_every_aggregation(
    make_batch: Callable[..., Any],
) -> None:
    from grpo_losses import DrGrpo, DrGrpoConfig, Grpo, GrpoConfig

    tokens = make_batch(0).tokens()
    a = Grpo(GrpoConfig(entropy_coef=0.1))(tokens).token_mean_N
    b = DrGrpo(DrGrpoConfig(entropy_coef=0.1))(tokens).token_mean_N
    assert a is not None
    assert torch.equal(a, -0.1 * tokens.entropy_N)
    assert b is not None
    assert torch.equal(a, b)
