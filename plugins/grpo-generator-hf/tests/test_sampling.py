"""Transforms against transformers' own, and the inverse of the cumulative distribution."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from grpo_core.settings import SamplingParams
from grpo_generator_hf.sampling import draw, log_mass, most_likely, tempered, transform

GRID = [
    dict(zip(("repetition_penalty", "temperature", "top_k", "top_p", "min_p"), values, strict=True))
    for values in product((1.0, 1.3, 0.7), (1.0, 0.6, 1.7), (0, 1, 20), (1.0, 0.9, 0.2), (0.0, 0.1))
]


def reference(sampling: SamplingParams, ids_BT: torch.Tensor, logits_BV: torch.Tensor) -> object:
    """What `generate` would build, in its order."""
    processors = LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    processors.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        processors.append(MinPLogitsWarper(sampling.min_p))
    return processors(ids_BT, logits_BV)


@pytest.mark.parametrize("options", GRID, ids=lambda options: "-".join(map(str, options.values())))
def test_transform_is_that_of_transformers(options: dict[str, float]) -> None:
    sampling = SamplingParams(**options)
    generator = torch.Generator().manual_seed(1)
    logits_BV = 3 * torch.randn(6, 300, generator=generator, dtype=torch.float64)
    ids_BT = torch.randint(300, (6, 40), generator=generator)
    seen_BV = torch.zeros(6, 300, dtype=torch.bool).scatter(1, ids_BT, True)
    found_BV = transform(tempered(logits_BV, sampling.temperature), sampling, seen_BV)
    torch.testing.assert_close(found_BV, reference(sampling, ids_BT, logits_BV.clone()))


def test_most_likely_token_always_stays() -> None:
    logits_BV = torch.tensor([[0.1, 0.3, 0.2]])
    for options in ({"top_p": 1e-9}, {"top_k": 1}, {"min_p": 1.0}):
        kept_BV = transform(logits_BV, SamplingParams(**options), None).isfinite()
        assert kept_BV.tolist() == [[False, True, False]]


def test_ties_stay_or_go_together() -> None:
    logits_BV = torch.tensor([[2.0, 1.0, 1.0, 0.0]])
    for options in ({"top_k": 2}, {"top_p": 0.6}, {"min_p": 0.3}):
        kept_BV = transform(logits_BV, SamplingParams(**options), None).isfinite()
        assert kept_BV.tolist() == [[True, True, True, False]], options


def test_top_k_beyond_the_vocabulary_keeps_all() -> None:
    logits_BV = torch.randn(2, 5)
    assert transform(logits_BV, SamplingParams(top_k=50), None) is logits_BV


@pytest.mark.parametrize("vocabulary", [3, 256, 300, 5000])
def test_draw_inverts_the_cumulative_distribution(vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    logits_BV = 4 * torch.randn(200, vocabulary, generator=generator)
    logits_BV[torch.rand(logits_BV.shape, generator=generator) < 0.5] = -math.inf
    logits_BV[:, 1] = 0.0
    uniform_B = torch.rand(200, generator=generator, dtype=torch.float64)
    token_B, logmass_B = draw(logits_BV, uniform_B)
    cumulative_BV = logits_BV.double().softmax(-1).cumsum(-1)
    expected_B = torch.searchsorted(cumulative_BV, uniform_B[:, None], right=True).squeeze(1)
    assert token_B.equal(expected_B)
    expected_logmass_B = logits_BV.double().logsumexp(-1)
    torch.testing.assert_close(logmass_B, expected_logmass_B, rtol=0, atol=1e-6)
    torch.testing.assert_close(log_mass(logits_BV), logmass_B, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kept", [0, 255, 256, 511, 640])
def test_the_ends_of_the_interval_never_reach_a_removed_token(kept: int) -> None:
    logits_BV = torch.full((2, 700), -math.inf)
    logits_BV[:, kept] = 1.3
    logits_BV[:, 300] = -2.0
    uniform_B = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    token_B, _ = draw(logits_BV, uniform_B)
    assert token_B.tolist() == [min(kept, 300), max(kept, 300)]


def test_rounding_at_the_end_never_reaches_a_removed_token() -> None:
    """A block's sum and the running sum inside it round differently: at the very end of the
    interval the one may lie beyond the other."""
    logits_BV = torch.randn(
        5000, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    logits_BV[:, 250:256] = -math.inf
    logits_BV[:, 290:] = -math.inf
    for last in (300, 256):
        uniform_B = torch.full((5000,), 1 - 2**-53, dtype=torch.float64)
        token_B, _ = draw(logits_BV[:, :last], uniform_B)
        assert logits_BV.gather(1, token_B[:, None]).isfinite().all()


def test_draws_follow_the_distribution(
    chi_square_p: Callable[[torch.Tensor, torch.Tensor], float],
) -> None:
    """Over three blocks, with rare tokens, from evenly spread numbers."""
    generator = torch.Generator().manual_seed(3)
    logits_V = 2 * torch.randn(700, generator=generator)
    count = 20000
    uniform_B = torch.rand(count, generator=generator, dtype=torch.float64)
    token_B, _ = draw(logits_V.expand(count, -1), uniform_B)
    observed_V = token_B.bincount(minlength=700)
    assert chi_square_p(observed_V, count * logits_V.double().softmax(-1)) > 0.001


def test_a_flat_tail_as_long_as_real_vocabularies_is_not_lost() -> None:
    """One token of half the mass, 150 000 that share the rest: in float32 running sums their
    shares are rounded away against 0.5."""
    logits_1V = torch.zeros(1, 150_000)
    logits_1V[0, 0] = math.log(150_000)
    uniform_B = torch.linspace(0.5, 1, 101, dtype=torch.float64)[1:-1]
    token_B, _ = draw(logits_1V.expand(len(uniform_B), -1), uniform_B)
    expected_B = (uniform_B - 0.5) * 2 * 150_000
    assert (token_B - expected_B).abs().max() < 1.5


def test_greedy_takes_the_most_likely_token_and_truncates_nothing() -> None:
    logits_BV = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    sampling = SamplingParams(temperature=0, top_k=1, top_p=0.1, min_p=0.5)
    policy_BV = tempered(logits_BV, 0)
    assert policy_BV.equal(logits_BV)
    drawn_BV = transform(policy_BV, sampling, None)
    assert drawn_BV is policy_BV
    assert most_likely(drawn_BV)[0].equal(logits_BV.argmax(-1))


def test_half_precision_logits_are_summed_in_float32() -> None:
    logits_BV = torch.randn(2, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert tempered(logits_BV, 0.7).dtype == torch.float32
    assert tempered(logits_BV.double(), 0.7).dtype == torch.float64
