"""Every objective, ratio level, aggregation and term, value and gradient, against the papers'
formulas written down once more: one rollout and one token at a time in float64, sharing nothing
with the implementation. ``c`` holds the options by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import exp, log
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import grpo_losses
from grpo_losses import config as presets
from grpo_losses import options
from grpo_losses.losses import PolicyLoss

MakeBatch = Callable[..., Any]
NAMES = sorted(n.removesuffix("Config") for n in vars(presets) if n.endswith("Config"))
Record = Any
MAX_TOKENS = 9


def total(rollouts: Sequence[Record], c: Any, objective: str) -> Tensor:
    """The number that an optimizer step minimises, for a batch that is one step."""
    tokens = sum(len(r.now) for r in rollouts)
    loss, bonus = torch.zeros(()).double(), torch.zeros(()).double()
    for r in rollouts:
        length = len(r.now)
        share = {
            "token-mean": 1 / tokens,
            "sequence-mean": 1 / (len(rollouts) * max(1, length)),
            "sequence-sum": 1 / len(rollouts),
            "constant": 1 / (len(rollouts) * MAX_TOKENS),
        }[c.aggregation]
        for t in range(length):
            kept = c.top_entropy == 1 or bool(r.entropy_rank[t] >= 1 - c.top_entropy)
            loss = loss + share * token_loss(r, t, c, objective, kept)
            bonus = bonus + kept * r.entropy[t] / tokens
    return loss - c.entropy_coef * bonus


def token_loss(r: Record, t: int, c: Any, objective: str, kept: bool) -> Tensor:
    a = r.advantage[t]
    policy = OBJECTIVES[objective](r, t, c)
    if c.ratio == "trajectory":
        policy = policy / len(r.now)
    if c.off_policy_mask is not None:
        drift = float((r.sampled - r.now.detach()).sum()) / len(r.now)
        if a < 0 and drift > c.off_policy_mask:
            policy = policy * 0
    if objective != "gmpo" and not kept:
        policy = policy * 0
    if c.sampler_correction != "auto" and objective != "vespo":
        policy = policy * correction(r, t, c.sampler_correction)
    if c.kl_coef:
        gap = r.now[t] - r.ref[t]
        kl = {"k1": gap, "k2": gap**2 / 2, "k3": (-gap).exp() - 1 + gap}[c.kl_estimator]
        policy = policy + c.kl_coef * kl * (ratio(r, t, c) if c.kl_correction else 1)
    return policy


def ratio(r: Record, t: int, c: Any) -> Tensor:
    probability_ratios = [n.exp() / o.exp() for n, o in zip(r.now, r.old, strict=True)]
    product = torch.stack(probability_ratios).prod()
    if c.ratio == "token":
        return probability_ratios[t]
    if c.ratio == "sequence":
        return product ** (1 / len(r.now))
    if c.ratio == "trajectory":
        return product
    # GSPO-token: sg[s_i] * pi / sg[pi]
    return (product ** (1 / len(r.now))).detach() * r.now[t].exp() / r.now[t].exp().detach()


def correction(r: Record, t: int, c: Any) -> float:
    logs = [float(o - s) for o, s in zip(r.old, r.sampled, strict=True)]
    weight = {
        "token": exp(logs[t]),
        "sequence": exp(sum(logs)),
        "geometric": exp(sum(logs) / len(logs)),
    }[c.level]
    low, high = c.low or 0.0, c.high or float("inf")
    if c.mode == "truncate":
        return min(max(weight, low), high)
    return weight if low <= weight <= high else 0.0


def clip(r: Record, t: int, c: Any) -> Tensor:
    a, s = r.advantage[t], ratio(r, t, c)
    first = torch.minimum(s, torch.tensor(c.clip_max, dtype=torch.float64)) if c.clip_max else s
    second = s.clip(1 - c.clip_low, 1 + c.clip_high)
    return -min(first * a, second * a)


def cispo(r: Record, t: int, c: Any) -> Tensor:
    return -min(float(ratio(r, t, c).detach()), c.cap) * r.advantage[t] * r.now[t]


def sapo(r: Record, t: int, c: Any) -> Tensor:
    a = r.advantage[t]
    tau = c.temperature_pos if a > 0 else c.temperature_neg
    gate = 1 / (1 + (-tau * (ratio(r, t, c) - 1)).exp()) * 4 / tau
    return -gate * a


def gmpo(r: Record, t: int, c: Any) -> Tensor:
    a = r.advantage[t]
    weight, count = torch.ones(()).double(), 0
    for i in range(len(r.now)):
        if c.top_entropy < 1 and r.entropy_rank[i] < 1 - c.top_entropy:
            continue
        rho = r.now[i].exp() / r.old[i].exp()
        bounded = rho.clip(exp(-c.clip_low), exp(c.clip_high))
        # min over rho * sgn(A), as the paper writes it
        weight = weight * (torch.minimum(rho, bounded) if a > 0 else torch.maximum(rho, bounded))
        count += 1
    return -(weight ** (1 / max(1, count))) * a


def vespo(r: Record, t: int, c: Any) -> Tensor:
    a = float(r.advantage[t])
    k, decay = (c.k_pos, c.lambda_pos) if a >= 0 else (c.k_neg, c.lambda_neg)
    w = 1.0
    for i in range(len(r.now)):
        w *= exp(float(r.now[i].detach() - r.old[i]))
        if c.sampler_correction != "auto":
            w *= max(correction(r, i, c.sampler_correction), 1e-8)
    w = max(w, 1e-8)
    return -exp(decay + k * log(w) - decay * w) * a * r.now[t]


def reinforce(r: Record, t: int, c: Any) -> Tensor:
    return -r.advantage[t] * r.now[t]


OBJECTIVES = {f.__name__: f for f in (clip, cispo, sapo, gmpo, vespo, reinforce)}


FAMILIES = {
    c.objective: c
    for c in (
        *(options.ClipConfig, options.CispoConfig, options.SapoConfig),
        *(options.GmpoConfig, options.VespoConfig, options.ReinforceConfig),
    )
}
TERMS: list[dict[str, Any]] = [
    {},
    *({"kl_coef": 0.1, "kl_estimator": k} for k in ("k1", "k2", "k3")),
    {"kl_coef": 0.1, "kl_correction": False},
    {"entropy_coef": 0.05},
    {"top_entropy": 0.4, "entropy_coef": 0.05, "kl_coef": 0.1},
    {"off_policy_mask": 0.05},
    {"sampler_correction": {"level": "token", "high": 1.3, "low": 0.6}},
    {"sampler_correction": {"level": "token", "mode": "mask", "high": 1.3, "low": 0.6}},
    {"sampler_correction": {"level": "sequence", "mode": "mask", "high": 3.0}},
    {"sampler_correction": {"level": "sequence", "high": 1.5}, "kl_coef": 0.1},
    {"sampler_correction": {"level": "geometric", "mode": "mask", "low": 0.9, "high": 1.1}},
]


def composed(batch: Any, loss: PolicyLoss, now_N: Tensor, entropy_N: Tensor) -> Tensor:
    """The same number from the implementation."""
    out = loss(batch.tokens(now_N, entropy_N))
    value = (out.loss_N * batch.weights(loss.aggregation)).sum()
    if out.token_mean_N is not None:
        value = value + (out.token_mean_N * batch.weights("token-mean")).sum()
    return value


def agree(batch: Any, config: options.LossConfig) -> None:
    ours, theirs = (
        (batch.now_N.clone().requires_grad_(), batch.entropy_N.clone().requires_grad_())
        for _ in range(2)
    )
    value = composed(batch, PolicyLoss(config), *ours)
    expected = total(batch.records(*theirs), config, config.objective)
    torch.testing.assert_close(value, expected, rtol=1e-11, atol=1e-13)
    for mine, paper in zip(
        torch.autograd.grad(value, ours, allow_unused=True, materialize_grads=True),
        torch.autograd.grad(expected, theirs, allow_unused=True, materialize_grads=True),
        strict=True,
    ):
        torch.testing.assert_close(mine, paper, rtol=1e-11, atol=1e-13)


def accepted(name: str, terms: dict[str, Any]) -> bool:
    """VESPO refuses corrections of whole rollouts, see ``test_losses.py``."""
    by_token = terms.get("sampler_correction", {}).get("level", "token") == "token"
    return by_token or name != "Vespo"


@pytest.mark.parametrize(
    ("name", "terms"),
    [(n, t) for n in NAMES for t in TERMS if accepted(n, t)],
    ids=str,
)
def test_every_named_loss_with_every_term(
    name: str, terms: dict[str, Any], make_batch: MakeBatch
) -> None:
    config = getattr(grpo_losses, f"{name}Config")
    for seed in range(2):
        agree(make_batch(seed), config(**terms))


@settings(max_examples=60)
@given(data=st.data(), seed=st.integers(0, 10**6))
def test_any_composition(data: st.DataObject, seed: int, make_batch: MakeBatch) -> None:
    """Objective x ratio x aggregation x terms x numbers."""
    family = FAMILIES[data.draw(st.sampled_from(sorted(FAMILIES)))]
    chosen: dict[str, Any] = {
        "ratio": data.draw(st.sampled_from(family.ratios)),
        "aggregation": data.draw(
            st.sampled_from(["token-mean", "sequence-mean", "sequence-sum", "constant"])
        ),
        **data.draw(st.sampled_from(TERMS)),
    }
    if family.objective == "vespo":
        chosen.pop("sampler_correction", None)
    numbers = {
        "clip": {"clip_low": 0.3, "clip_high": 0.5, "clip_max": 1.7},
        "cispo": {"cap": 1.2},
        "sapo": {"temperature_pos": 2.0, "temperature_neg": 0.7},
        "gmpo": {"clip_low": 0.2, "clip_high": 0.1},
        "vespo": {"k_pos": 0.5, "lambda_neg": 1.5},
        "reinforce": {},
    }[family.objective]
    if data.draw(st.booleans()):
        chosen |= numbers
    agree(make_batch(seed, rows=3), family(**chosen))


def test_two_sided_clipping_bounds_what_a_token_to_discourage_can_do(make_batch: MakeBatch) -> None:
    batch = make_batch(3, spread=2.0)
    agree(batch, options.ClipConfig(clip_max=1.5))
    agree(batch, options.ClipConfig(clip_max=1.5, ratio="sequence", clip_low=0.1))
