"""Terms against closed forms."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from grpo_losses.terms import bounded, clipped_surrogate, kl_k3

finite = st.floats(-1e4, 1e4)


@given(st.floats(-15, 15), st.floats(-5, 5), st.floats(0, 1), st.floats(0, 3))
def test_the_surrogate_is_never_more_hopeful_than_either_half(
    log_ratio: float, advantage: float, low: float, high: float
) -> None:
    x = torch.tensor([log_ratio]).double()
    a = torch.tensor([advantage]).double()
    loss = clipped_surrogate(x, a, clip_low=low, clip_high=high).loss_N
    assert (loss >= -x.exp() * a).all()
    assert (loss >= -x.exp().clamp(1 - low, 1 + high) * a).all()


@given(finite, finite)
def test_kl_is_not_negative_and_pulls_towards_the_reference(logprob: float, ref: float) -> None:
    leaf = torch.tensor([logprob]).double().requires_grad_()
    kl = kl_k3(leaf, torch.tensor([ref]).double())
    kl.sum().backward()
    assert (kl >= 0).all()
    assert leaf.grad is not None
    # Minimising moves against the gradient; past the bound there is none, never the wrong one.
    assert (leaf.grad * (logprob - ref) >= 0).all()


def test_k3_averages_to_the_exact_kl() -> None:
    generator = torch.Generator().manual_seed(0)
    policy, reference = torch.randn(2, 6, generator=generator, dtype=torch.float64).log_softmax(-1)
    exact = (policy.exp() * (policy - reference)).sum()
    torch.testing.assert_close((policy.exp() * kl_k3(policy, reference)).sum(), exact)


def test_k3_keeps_its_digits_when_the_policies_are_close() -> None:
    q = torch.tensor([1e-4], dtype=torch.float32)
    value = kl_k3(-q, torch.zeros(1)).double()
    torch.testing.assert_close(value, q.double() ** 2 / 2, rtol=1e-2, atol=0)


def test_the_bound_is_out_of_the_way_of_real_ratios() -> None:
    x = torch.tensor([-1e9, -30.0, 0.0, 19.9])
    assert torch.equal(bounded(x), x)
