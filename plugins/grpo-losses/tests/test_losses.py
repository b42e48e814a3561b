"""The named losses against TRL's formulas on padded tensors, in float64, with gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from grpo_losses.config import ClippedConfig, DapoConfig, DrGrpoConfig, GrpoConfig
from grpo_losses.losses import ClippedLoss, Dapo, DrGrpo, Grpo

MakeBatch = Callable[..., Any]
VARIANTS = [Grpo, Dapo, DrGrpo]


def padded_loss(batch: Any, logprobs_B_T: Tensor, kind: str, config: ClippedConfig) -> Tensor:
    """Loss of a whole batch as TRL 1.16 computes it: padded, masked, averaged by ``kind``."""
    mask = batch.mask_B_T.double()
    advantage = batch.advantages_B[:, None]
    ratio = torch.exp(logprobs_B_T - batch.old_B_T)
    clipped = torch.clamp(ratio, 1 - config.clip_low, 1 + config.clip_high)
    per_token = -torch.min(ratio * advantage, clipped * advantage)
    if config.kl_coef:
        q = batch.ref_B_T - logprobs_B_T
        per_token = per_token + config.kl_coef * (torch.exp(q) - q - 1)
    per_token = per_token - config.entropy_coef * batch.entropy_B_T
    if kind == "grpo":
        return ((per_token * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()
    if kind == "dapo":
        return (per_token * mask).sum() / mask.sum().clamp(min=1)
    return (per_token * mask).sum() / mask.numel()


def flat_loss(batch: Any, logprobs_B_T: Tensor, loss: ClippedLoss) -> Tensor:
    tokens = batch.tokens(logprobs_B_T, reference="ref_logprobs" in loss.needs)
    return (loss(tokens).loss_N * batch.weights(loss.aggregation)).sum()


@pytest.mark.parametrize("coefs", [{}, {"kl_coef": 0.04}, {"kl_coef": 0.1, "entropy_coef": 0.01}])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("make", "kind"), [(Grpo, "grpo"), (Dapo, "dapo"), (DrGrpo, "dr-grpo")])
def test_value_and_gradient_equal_the_padded_formula(
    make: type[ClippedLoss], kind: str, seed: int, coefs: dict[str, float], make_batch: MakeBatch
) -> None:
    batch = make_batch(seed)
    loss = make(make.Config(**coefs))
    ours, theirs = (batch.logprobs_B_T.clone().requires_grad_() for _ in range(2))
    value = flat_loss(batch, ours, loss)
    expected = padded_loss(batch, theirs, kind, loss.config)
    value.backward()
    expected.backward()
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("make", VARIANTS)
def test_no_advantage_no_gradient(make: type[ClippedLoss], make_batch: MakeBatch) -> None:
    batch = make_batch(0, spread=40.0)
    batch.advantages_B.zero_()
    logprobs = batch.logprobs_B_T.clone().requires_grad_()
    flat_loss(batch, logprobs, make()).backward()
    assert logprobs.grad is not None
    assert (logprobs.grad == 0).all()


@pytest.mark.parametrize("make", VARIANTS)
def test_at_ratio_one_the_gradient_is_that_of_reinforce(
    make: type[ClippedLoss], make_batch: MakeBatch
) -> None:
    batch = make_batch(1, spread=0.0)
    loss = make()
    ours, reinforce = (batch.logprobs_B_T.clone().requires_grad_() for _ in range(2))
    flat_loss(batch, ours, loss).backward()
    tokens = batch.tokens(reinforce)
    (-tokens.advantages_N * tokens.logprobs_N * batch.weights(loss.aggregation)).sum().backward()
    torch.testing.assert_close(ours.grad, reinforce.grad, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("log_ratio", [1e4, -1e4, 89.0])
@pytest.mark.parametrize("make", VARIANTS)
def test_loss_and_gradient_are_finite_at_extreme_ratios(
    make: type[ClippedLoss], log_ratio: float, dtype: torch.dtype, make_batch: MakeBatch
) -> None:
    """To the old policy and, with its own sign, to the reference."""
    batch = make_batch(2, dtype=dtype)
    batch.advantages_B[:3] = torch.tensor([-1.0, 1.0, 0.0])
    logprobs = (batch.old_B_T + log_ratio).requires_grad_()
    value = flat_loss(batch, logprobs, make(make.Config(kl_coef=0.1)))
    value.backward()
    assert logprobs.dtype == dtype
    assert value.isfinite()
    assert logprobs.grad is not None
    assert logprobs.grad.isfinite().all()


def test_an_impossible_token_has_zero_ratio_and_no_nan(make_batch: MakeBatch) -> None:
    batch = make_batch(2)
    logprobs = torch.full_like(batch.old_B_T, -torch.inf).requires_grad_()
    flat_loss(batch, logprobs, Dapo()).backward()
    assert logprobs.grad is not None
    assert logprobs.grad.isfinite().all()


def test_clip_metrics_are_the_tokens_that_lost_their_gradient(make_batch: MakeBatch) -> None:
    batch = make_batch(3, rows=40)
    logprobs = batch.logprobs_B_T.clone().requires_grad_()
    tokens = batch.tokens(logprobs)
    out = Dapo()(tokens)
    low, high = out.metrics["ratio/clip_low"], out.metrics["ratio/clip_high"]
    (gradient,) = torch.autograd.grad(out.loss_N.sum(), logprobs)
    assert torch.equal((low + high).bool(), gradient[batch.mask_B_T] == 0)
    assert (tokens.advantages_N[low.bool()] < 0).all()
    assert (tokens.advantages_N[high.bool()] > 0).all()
    assert low.sum() > 0
    assert high.sum() > 0
    assert not low.requires_grad


def test_clip_high_leaves_more_room_upwards(make_batch: MakeBatch) -> None:
    """At ratio 1.25 and a positive advantage DAPO still pushes, GRPO no longer does."""
    batch = make_batch(4)
    batch.advantages_B.fill_(1.0)
    logprobs = (batch.old_B_T + torch.tensor(1.25).double().log()).requires_grad_()
    assert Dapo()(batch.tokens(logprobs)).metrics["ratio/clip_high"].sum() == 0
    assert Grpo()(batch.tokens(logprobs)).metrics["ratio/clip_high"].all()


@pytest.mark.parametrize("make", VARIANTS)
def test_needs_follow_the_options(make: type[ClippedLoss]) -> None:
    assert make().needs == {"old_logprobs"}
    assert make(make.Config(kl_coef=0.1)).needs == {"old_logprobs", "ref_logprobs"}
    assert make(make.Config(entropy_coef=0.1)).needs == {"old_logprobs", "entropy"}


def test_kl_without_a_reference_says_what_to_do(make_batch: MakeBatch) -> None:
    tokens = make_batch(5).tokens(reference=False)
    with pytest.raises(ValueError, match=r"choose a reference .* or set kl_coef to 0"):
        Grpo(GrpoConfig(kl_coef=0.04))(tokens)


def test_the_papers_defaults() -> None:
    assert (Grpo().aggregation, GrpoConfig.default_advantage) == ("sequence-mean", "group")
    assert (Dapo().aggregation, DapoConfig.default_advantage) == ("token-mean", "group")
    assert (DrGrpo().aggregation, DrGrpoConfig.default_advantage) == ("constant", "none")
    assert DapoConfig().clip_high == 0.28
    assert Grpo(GrpoConfig(aggregation="token-mean")).aggregation == "token-mean"


@pytest.mark.parametrize(
    "bad", [{"clip_low": 1.5}, {"kl_coef": -1}, {"aggregation": "mean"}, {"b": 1}]
)
def test_impossible_options_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        GrpoConfig(**bad)
