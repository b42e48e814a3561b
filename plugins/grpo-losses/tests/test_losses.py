"""What options promise and refuse, and what the losses report. Their values are compared with the
papers in ``test_papers.py``, their promises to the core checked in ``test_conformance.py``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

import grpo_losses
from grpo_losses import (
    AdaptiveEntropy,
    CispoConfig,
    Dapo,
    DapoConfig,
    Gmpo,
    Grpo,
    GrpoConfig,
    LossConfig,
    PolicyLoss,
)
from grpo_losses import config as presets

MakeBatch = Callable[..., Any]
NAMES = sorted(n.removesuffix("Config") for n in vars(presets) if n.endswith("Config"))
CONFIGS: list[type[LossConfig]] = [getattr(grpo_losses, f"{name}Config") for name in NAMES]


@pytest.mark.parametrize("loss", [Dapo(), Gmpo()], ids=lambda loss: loss.config.objective)
def test_clip_metrics_are_the_tokens_that_lost_their_gradient(
    loss: PolicyLoss, make_batch: MakeBatch
) -> None:
    batch = make_batch(3, rows=40)
    logprobs = batch.now_N.clone().requires_grad_()
    tokens = batch.tokens(logprobs)
    out = loss(tokens)
    low, high = out.metrics["ratio/clip_low"], out.metrics["ratio/clip_high"]
    (gradient,) = torch.autograd.grad(out.loss_N.sum(), logprobs)
    assert torch.equal((low + high).bool(), gradient == 0)
    assert (tokens.advantages_N[low.bool()] < 0).all()
    assert (tokens.advantages_N[high.bool()] > 0).all()
    assert low.sum() > 0
    assert high.sum() > 0
    assert not low.requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_a_sampler_that_differs_is_corrected_unless_told_otherwise(
    name: str, make_batch: MakeBatch
) -> None:
    config = getattr(grpo_losses, f"{name}Config")
    kind = getattr(grpo_losses, name)
    tokens = make_batch(5, rows=20).tokens()
    differing = replace(tokens, sampler_differs=True)
    given = kind(config(sampler_correction={"high": 2.0}))(differing).loss_N
    without = kind(config(sampler_correction=None))(differing).loss_N
    assert torch.equal(kind(config())(differing).loss_N, given)
    assert torch.equal(kind(config())(tokens).loss_N, without)
    assert not torch.equal(given, without)


def test_clip_high_leaves_more_room_upwards(make_batch: MakeBatch) -> None:
    """At ratio 1.25 and a positive advantage DAPO still pushes, GRPO no longer does."""
    batch = make_batch(4)
    batch.advantage_N.fill_(1.0)
    tokens = batch.tokens(batch.old_N + torch.tensor(1.25).double().log())
    assert Dapo()(tokens).metrics["ratio/clip_high"].sum() == 0
    assert Grpo()(tokens).metrics["ratio/clip_high"].all()


def test_an_impossible_token_has_zero_ratio_and_no_nan(make_batch: MakeBatch) -> None:
    batch = make_batch(2)
    logprobs = torch.full_like(batch.old_N, -torch.inf).requires_grad_()
    (gradient,) = torch.autograd.grad(Dapo()(batch.tokens(logprobs)).loss_N.sum(), logprobs)
    assert gradient.isfinite().all()


def test_the_adaptive_coefficient_follows_the_entropy_of_all_microbatches_and_ranks(
    make_batch: MakeBatch,
) -> None:
    """Skywork-OR1's rule by hand: none before an entropy is known, then up or down by delta."""
    batch = make_batch(0)
    rule = AdaptiveEntropy(target=0.5, delta=0.1, low=0.0, high=0.25)
    loss = Grpo(GrpoConfig(entropy_coef=0.2, adaptive_entropy=rule))

    def step(entropy: float, other_rank: tuple[float, float] = (0.0, 0)) -> float:
        batch.entropy_N.fill_(entropy)
        applied = [float(loss(batch.tokens()).metrics["entropy/coef"][0]) for _ in range(2)]
        loss.optimizer_step_done(lambda mine: [*mine, other_rank])
        assert applied[0] == applied[1]
        return applied[0]

    tokens = len(batch.entropy_N)
    assert step(0.9) == 0.0  # nothing known yet; then down to 0.1, and above the target
    assert step(0.4) == 0.0  # down to nothing before, up to 0.2 now
    assert step(0.4) == pytest.approx(0.2)
    assert step(0.4, (2.0 * tokens, 2 * tokens)) == pytest.approx(0.25)  # at most `high`
    # The other rank's 1.0 made the mean 0.7, so the bonus rests.
    assert step(0.4) == 0.0
    state = loss.entropy_bonus.state()
    other = Grpo(GrpoConfig(entropy_coef=0.2, adaptive_entropy=rule))
    other.entropy_bonus.load_state(state)
    assert other.entropy_bonus.applied == loss.entropy_bonus.applied


def test_needs_follow_the_options() -> None:
    assert Grpo().needs == {"old_logprobs"}
    assert Grpo(GrpoConfig(kl_coef=0.1)).needs == {"old_logprobs", "ref_logprobs"}
    assert Grpo(GrpoConfig(entropy_coef=0.1)).needs == {"old_logprobs", "entropy"}
    assert Grpo(GrpoConfig(top_entropy=0.2)).needs == {"old_logprobs", "entropy_rank"}
    assert Grpo(GrpoConfig(off_policy_mask=0.2)).needs == {"old_logprobs", "sampling_logprobs"}
    assert grpo_losses.Reinforce().needs == set()


def test_what_is_needed_and_missing_is_named(make_batch: MakeBatch) -> None:
    from dataclasses import replace

    tokens = replace(make_batch(0).tokens(), ref_logprobs_N=None, old_logprobs_N=None)
    with pytest.raises(ValueError, match="no old log-probs"):
        Grpo()(tokens)
    tokens = make_batch(0).tokens()
    with pytest.raises(ValueError, match="no reference log-probs; choose a reference"):
        Grpo(GrpoConfig(kl_coef=0.1))(replace(tokens, ref_logprobs_N=None))
    with pytest.raises(ValueError, match="no entropy ranks"):
        Grpo(GrpoConfig(top_entropy=0.1))(replace(tokens, entropy_rank_N=None))


@pytest.mark.parametrize(
    ("config", "options", "words"),
    [
        ("Gmpo", {"ratio": "sequence"}, "takes their geometric mean itself; use 'token'"),
        ("Cispo", {"ratio": "trajectory"}, "its ratio is a detached weight"),
        ("Vespo", {"ratio": "sequence"}, "it weighs whole rollouts"),
        ("Reinforce", {"ratio": "sequence"}, "it has no ratio"),
        ("Vespo", {"sampler_correction": {"level": "sequence", "high": 2}}, "use 'token'"),
        ("Grpo", {"kl_coef": 0.1, "kl_estimator": "k1", "kl_correction": False}, "mean is 0"),
        ("Grpo", {"clip_max": 1.1}, "not above 1 . clip_high, 1.2"),
        ("Grpo", {"sampler_correction": {}}, "neither low nor high"),
        ("Grpo", {"sampler_correction": {"low": 2, "high": 1}}, "not below high"),
        ("Grpo", {"clip_low": -0.1}, "clip_low"),
        ("Grpo", {"clip_low": 1.1}, "clip_low"),
        ("Grpo", {"kl_coef": -1}, "kl_coef"),
        ("Grpo", {"aggregation": "mean"}, "aggregation"),
        ("Grpo", {"beta": 0.1}, "beta"),
        ("Grpo", {"entropy_coef": float("nan")}, "entropy_coef"),
        ("Grpo", {"top_entropy": 1.5}, "top_entropy"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(
    config: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        getattr(grpo_losses, f"{config}Config")(**options)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.__name__)
def test_every_preset_keeps_the_bounds_and_descriptions_of_its_family(
    config: type[LossConfig],
) -> None:
    assert config() == config(**config().model_dump())
    assert set(config.defaults) <= set(config.model_fields)
    for name, field in config.model_fields.items():
        assert field.description, name
        if name in config.__dict__.get("defaults", {}):
            assert getattr(config(), name) == config.defaults[name]


def test_a_preset_changes_no_other() -> None:
    assert (GrpoConfig().clip_high, DapoConfig().clip_high) == (0.2, 0.28)
    assert grpo_losses.GspoConfig().aggregation == "sequence-mean"
    assert grpo_losses.LuspoConfig().aggregation == "sequence-sum"
    assert grpo_losses.GspoTokenConfig().clip_high == 4e-4


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.__name__)
def test_a_description_names_what_the_preset_is_made_of(config: type[LossConfig]) -> None:
    text = config.describe()
    options = config()
    assert options.objective in text
    assert options.aggregation in text
    assert options.default_advantage in text
    assert (f"{options.ratio} ratio" in text) == (len(config.ratios) > 1)
    assert (f"https://arxiv.org/abs/{config.paper}" in text) == bool(config.paper)


def test_a_capped_weight_keeps_every_gradient(make_batch: MakeBatch) -> None:
    """What CISPO is for: at a ratio that PPO's clip stops, there still is a gradient."""
    batch = make_batch(5)
    batch.advantage_N.fill_(1.0)
    logprobs = (batch.old_N + 3.0).requires_grad_()
    for loss, moves in ((PolicyLoss(CispoConfig()), True), (Grpo(), False)):
        (gradient,) = torch.autograd.grad(loss(batch.tokens(logprobs)).loss_N.sum(), logprobs)
        assert bool((gradient != 0).all()) == moves
