"""Loss and gradient of every variant that TRL 1.16 has too, in float64, against its own code.

Where the two agree only under a condition, the condition is written here and the difference is
listed in docs/explanation/algorithms.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from trl import GRPOTrainer, RLOOTrainer
from trl.experimental.gmpo import GMPOTrainer

import grpo_losses
from grpo_core.batching import plan_weights
from grpo_core.types import ActionTokens
from grpo_losses import PolicyLoss

pytestmark = pytest.mark.oracle

WIDTH = 9
MakePadded = Callable[..., Any]
Options = dict[str, Any]
SEQUENCE = {"importance_sampling_level": "sequence"}

KINDS: dict[str, tuple[type, Options]] = {
    "Grpo": (GRPOTrainer, {}),
    "Dapo": (GRPOTrainer, {"loss_type": "dapo", "epsilon_high": 0.28}),
    "DrGrpo": (GRPOTrainer, {"loss_type": "dr_grpo"}),
    "Bnpo": (GRPOTrainer, {"loss_type": "bnpo"}),
    "Gspo": (GRPOTrainer, {**SEQUENCE, "epsilon_low": 3e-4, "epsilon_high": 4e-4}),
    "Luspo": (
        GRPOTrainer,
        {**SEQUENCE, "loss_type": "luspo", "epsilon_low": 2e-3, "epsilon_high": 2.5e-3},
    ),
    "Cispo": (GRPOTrainer, {"loss_type": "cispo", "epsilon_high": 5.0}),
    "Sapo": (GRPOTrainer, {"loss_type": "sapo", "sapo_temperature_neg": 1.0625}),
    "Vespo": (GRPOTrainer, {"loss_type": "vespo"}),
}

CONFIGS: dict[str, Options] = {
    # TRL's temperatures become float32, whatever the log-probs are: 1.05 is not exact there.
    "Sapo": {"temperature_neg": 1.0625}
}
"""What is set besides the presets' own numbers."""

TERMS: dict[str, tuple[Options, Options]] = {
    "nothing": ({}, {}),
    "kl": ({"kl_coef": 0.1}, {"beta": 0.1}),
    "plain kl": (
        {"kl_coef": 0.1, "kl_correction": False},
        {"beta": 0.1, "use_bias_correction_kl": False},
    ),
    "entropy": ({"entropy_coef": 0.05}, {"entropy_coef": 0.05}),
    "top entropy": (
        {"top_entropy": 0.4, "kl_coef": 0.1},
        {"top_entropy_quantile": 0.4, "beta": 0.1},
    ),
    "off-policy": ({"off_policy_mask": 0.1}, {"off_policy_mask_threshold": 0.1}),
    "all": (
        {"kl_coef": 0.1, "off_policy_mask": 0.1, "top_entropy": 0.6},
        {"beta": 0.1, "off_policy_mask_threshold": 0.1, "top_entropy_quantile": 0.6},
    ),
}
SAMPLER: dict[str, Options] = {
    f"{level}_{mode}": {"level": level, "mode": mode, "high": 1.4, "low": low}
    for level in ("token", "sequence")
    for mode in ("truncate", "mask")
    for low in (0.7,)
}


def preset(name: str, **options: Any) -> PolicyLoss:
    make = getattr(grpo_losses, f"{name}Config")
    return PolicyLoss(make(**{**CONFIGS.get(name, {}), **options}))


def ours(
    batch: Any,
    loss: PolicyLoss,
    now_B_T: Tensor,
    entropy_B_T: Tensor,
    *,
    on_policy: bool = False,
) -> Tensor:
    """What the core makes of the loss, for one optimizer step on one rank."""
    masked_B = batch.truncated_B & loss.masks_truncated
    mask = batch.mask_B_T & ~masked_B[:, None]
    (weights,) = plan_weights(
        [tuple(range(len(mask)))],
        batch.mask_B_T.sum(1).tolist(),
        loss.aggregation,
        max_tokens=WIDTH,
        ranks=1,
        sum_over_ranks=lambda local: local,
        masked=masked_B.tolist(),
    )
    index_B_T = torch.arange(len(mask))[:, None].expand(mask.shape)
    entropy_N = entropy_B_T[mask]
    below_N = (entropy_N[:, None] >= entropy_N[None]).sum(1) - 1
    tokens = ActionTokens(
        logprobs_N=now_B_T[mask],
        old_logprobs_N=(now_B_T.detach() if on_policy else batch.old_B_T)[mask],
        sampling_logprobs_N=batch.sampled_B_T[mask],
        ref_logprobs_N=batch.ref_B_T[mask],
        entropy_N=entropy_N,
        advantages_N=batch.advantages_B[:, None].expand(mask.shape)[mask],
        rollout_index_N=index_B_T[mask],
        rollouts=len(mask),
        entropy_rank_N=below_N / (len(entropy_N) - 1),
    )
    out = loss(tokens)
    total = (out.loss_N * weights.loss_B[tokens.rollout_index_N]).sum()
    if out.token_mean_N is not None:
        total = total + (out.token_mean_N * weights.mean_B[tokens.rollout_index_N]).sum()
    return total


def agree(
    batch: Any,
    loss: PolicyLoss,
    trl: Callable[..., Tensor],
    kind: type,
    options: Options,
    *,
    on_policy: bool = False,
    **settings: Any,
) -> None:
    leaves = [
        [x.clone().requires_grad_() for x in (batch.now_B_T, batch.entropy_B_T)] for _ in range(2)
    ]
    mine = ours(batch, loss, *leaves[0], on_policy=on_policy)
    theirs = trl(kind, batch, *leaves[1], options, on_policy=on_policy, **settings)
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)
    for a, b in zip(
        *(
            torch.autograd.grad(value, leaf, allow_unused=True, materialize_grads=True)
            for value, leaf in zip((mine, theirs), leaves, strict=True)
        ),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-14)
    assert torch.autograd.grad(ours(batch, loss, *leaves[0], on_policy=on_policy), leaves[0][0])[
        0
    ].any(), "a gradient of 0 everywhere would compare nothing"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("mask_truncated", [False, True], ids=["all rows", "truncated masked"])
@pytest.mark.parametrize("on_policy", [False, True], ids=["off-policy", "on-policy"])
@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("name", KINDS)
def test_one_microbatch(
    name: str,
    terms: str,
    on_policy: bool,
    mask_truncated: bool,
    seed: int,
    make_padded: MakePadded,
    trl_loss: Callable[..., Tensor],
) -> None:
    kind, base = KINDS[name]
    mine, theirs = TERMS[terms]
    # GSPO's narrow clip would leave no gradient at usual distances.
    spread = 2e-3 if name in ("Gspo", "Luspo") else 0.5
    agree(
        make_padded(seed, spread=spread),
        preset(name, **mine, mask_truncated=mask_truncated),
        trl_loss,
        kind,
        {**base, **theirs},
        on_policy=on_policy,
        mask_truncated=mask_truncated,
    )


@pytest.mark.parametrize("microbatches", [2, 3])
@pytest.mark.parametrize("terms", ["nothing", "kl", "off-policy"])
@pytest.mark.parametrize("name", [n for n in KINDS if n != "Bnpo"])
def test_gradient_accumulation(
    name: str,
    terms: str,
    microbatches: int,
    make_padded: MakePadded,
    trl_loss: Callable[..., Tensor],
) -> None:
    """Microbatches of equally many rollouts. TRL's BNPO depends on the split, ours does not."""
    kind, base = KINDS[name]
    mine, theirs = TERMS[terms]
    loss = preset(name, **mine)
    spread = 2e-3 if name in ("Gspo", "Luspo") else 0.5
    batch = make_padded(5, spread=spread)
    agree(batch, loss, trl_loss, kind, {**base, **theirs}, microbatches=microbatches)


@pytest.mark.parametrize("name", KINDS)
def test_accumulation_over_equally_many_tokens_agrees_in_everything(
    name: str, make_padded: MakePadded, trl_loss: Callable[..., Tensor]
) -> None:
    """TRL averages BNPO and the entropy bonus per microbatch, which is then the same."""
    kind, base = KINDS[name]
    mine, theirs = TERMS["entropy"]
    loss = preset(name, **mine)
    spread = 2e-3 if name in ("Gspo", "Luspo") else 0.5
    batch = make_padded(6, even=True, spread=spread)
    agree(batch, loss, trl_loss, kind, {**base, **theirs}, microbatches=3)


@pytest.mark.parametrize("correction", SAMPLER)
@pytest.mark.parametrize("terms", ["nothing", "kl", "off-policy"])
@pytest.mark.parametrize("name", KINDS)
def test_sampler_correction(
    name: str,
    terms: str,
    correction: str,
    make_padded: MakePadded,
    trl_loss: Callable[..., Tensor],
) -> None:
    level = SAMPLER[correction]["level"]
    kind, base = KINDS[name]
    mine, theirs = TERMS[terms]
    if name == "Vespo" and level == "sequence":
        with pytest.raises(ValueError, match="level"):
            preset(name, sampler_correction=SAMPLER[correction])
        return
    spread = 2e-3 if name in ("Gspo", "Luspo") else 0.5
    batch = make_padded(7, rows=24, spread=spread)
    agree(
        batch,
        preset(name, **mine, sampler_correction=SAMPLER[correction]),
        trl_loss,
        kind,
        {**base, **theirs, "use_vllm": True},
        sampler_ratio=trl_sampler_ratio(batch, correction),
    )


def trl_sampler_ratio(batch: Any, mode: str) -> Tensor:
    """TRL makes this in ``_generate_and_score_completions``, which needs vLLM; written down from
    there."""
    difference = (batch.old_B_T - batch.sampled_B_T) * batch.mask_B_T
    if mode.startswith("sequence"):
        difference = difference.sum(-1, keepdim=True)
    ratio = difference.exp()
    if mode.endswith("truncate"):
        return ratio.clamp(0.7, 1.4)
    return ratio.masked_fill((ratio < 0.7) | (ratio > 1.4), 0.0)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("name", ["Grpo", "Dapo", "DrGrpo", "Bnpo", "Cispo", "Sapo"])
def test_ratio_levels_and_numbers_can_be_changed(
    name: str, level: str, make_padded: MakePadded, trl_loss: Callable[..., Tensor]
) -> None:
    kind, base = KINDS[name]
    mine: Options = {"ratio": level}
    theirs: Options = {"importance_sampling_level": level}
    if name in ("Grpo", "Dapo", "DrGrpo", "Bnpo"):
        mine |= {"clip_low": 0.1, "clip_high": 0.3, "clip_max": 1.5}
        theirs |= {"epsilon_low": 0.1, "epsilon_high": 0.3, "delta": 1.5}
    if name == "Sapo":
        mine |= {"temperature_pos": 2.0, "temperature_neg": 0.5}
        theirs |= {"sapo_temperature_pos": 2.0, "sapo_temperature_neg": 0.5}
    if name == "Cispo":
        mine |= {"cap": 1.1}
        theirs |= {"epsilon_high": 1.1}
    loss = preset(name, **mine)
    agree(make_padded(8), loss, trl_loss, kind, {**base, **theirs})


@pytest.mark.parametrize("terms", ["nothing", "plain kl", "top entropy"])
def test_gmpo(terms: str, make_padded: MakePadded, trl_loss: Callable[..., Tensor]) -> None:
    mine, theirs = TERMS[terms]
    loss = grpo_losses.Gmpo(grpo_losses.GmpoConfig(**{**mine, "kl_correction": False}))
    options = {"epsilon_low": 0.4, "epsilon_high": 0.4, **theirs}
    for microbatches in (1, 2) if terms != "top entropy" else (1,):
        agree(make_padded(9), loss, trl_loss, GMPOTrainer, options, microbatches=microbatches)


def test_rloo(make_padded: MakePadded, trl_loss: Callable[..., Tensor]) -> None:
    # TRL's Trainer divides by the accumulation steps outside of this function.
    agree(make_padded(10, spread=0.05), grpo_losses.Rloo(), trl_loss, RLOOTrainer, {})


def test_trls_default_cap_of_cispo_is_another_loss(
    make_padded: MakePadded, trl_loss: Callable[..., Tensor]
) -> None:
    """Its ``epsilon_high`` defaults to 0.2: every weight is at most 0.2, ours to 5."""
    batch, options = make_padded(11), {"loss_type": "cispo", "epsilon_high": 0.2}
    agree(batch, PolicyLoss(grpo_losses.CispoConfig(cap=0.2)), trl_loss, GRPOTrainer, options)
    with pytest.raises(AssertionError):
        agree(batch, grpo_losses.Cispo(), trl_loss, GRPOTrainer, options)


def test_trls_bnpo_depends_on_the_microbatches(
    make_padded: MakePadded, trl_loss: Callable[..., Tensor]
) -> None:
    batch = make_padded(12)
    options = KINDS["Bnpo"][1]
    found = [
        trl_loss(GRPOTrainer, batch, batch.now_B_T, batch.entropy_B_T, options, microbatches=n)
        for n in (1, 2)
    ]
    assert not torch.allclose(*found)
