"""Truncated and penalised draws: log-probs stay the policy's own, and what was cut off is told.

The reference is one pass over each whole sequence, and transformers' own processors on its logits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from grpo_core.types import Completion, GenerateRequest

PROMPTS = ((5, 9, 2, 7, 11, 30, 8, 1, 3), (4,), (17, 3, 3))
TEMPERATURE = 1.4
PENALTY = 1.5
TRUNCATIONS: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "top_p": ({"top_p": 0.8}, [TopPLogitsWarper(0.8)]),
    "top_k": ({"top_k": 5}, [TopKLogitsWarper(5)]),
    "min_p": ({"min_p": 0.1}, [MinPLogitsWarper(0.1)]),
    "all": (
        {"top_k": 9, "top_p": 0.9, "min_p": 0.02},
        [TopKLogitsWarper(9), TopPLogitsWarper(0.9), MinPLogitsWarper(0.02)],
    ),
}

Sample = Callable[..., list[tuple[Completion, ...]]]


@torch.no_grad()
def processed(
    model: PreTrainedModel, prompt: tuple[int, ...], completion: Completion, processors: list[Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits / T at each token of the completion, and what the processors make of them; the
    tokens before it are shown to each."""
    ids_1T = torch.tensor([[*prompt, *completion.token_ids]])
    logits_TV = model(input_ids=ids_1T).logits[0]
    warp = TemperatureLogitsWarper(TEMPERATURE)
    all_of_them = LogitsProcessorList(processors)
    ends = range(len(prompt), ids_1T.shape[1])
    plain = [warp(ids_1T[:, :end], logits_TV[end - 1 : end]) for end in ends]
    done = [all_of_them(ids_1T[:, :end], x.clone()) for end, x in zip(ends, plain, strict=True)]
    return torch.cat(plain), torch.cat(done)


def at(logits_TV: torch.Tensor, completion: Completion) -> torch.Tensor:
    tokens_T1 = torch.tensor(completion.token_ids)[:, None]
    return logits_TV.log_softmax(-1).gather(1, tokens_T1).squeeze(1)


# The fused step, the model's own forward, and `model.generate`, which hands on float32 only.
@pytest.mark.parametrize(
    ("architecture", "dtype", "tolerance"),
    [
        ("qwen3", torch.float32, 1e-5),
        ("qwen3", torch.float64, 1e-12),
        ("gpt2", torch.float64, 1e-12),
        ("bloom", torch.float32, 1e-5),
    ],
)
@pytest.mark.parametrize("penalty", [1.0, PENALTY])
@pytest.mark.parametrize("truncation", [None, *TRUNCATIONS])
def test_log_probs_are_the_policys_and_the_kept_mass_leads_to_those_drawn_with(
    make_model: Callable[..., PreTrainedModel],
    make_request: Callable[..., GenerateRequest],
    sample: Sample,
    architecture: str,
    dtype: torch.dtype,
    tolerance: float,
    penalty: float,
    truncation: str | None,
) -> None:
    options, processors = TRUNCATIONS[truncation] if truncation else ({}, [])
    penalise = [RepetitionPenaltyLogitsProcessor(penalty)] if penalty != 1 else []
    model = make_model(architecture, dtype)
    request = make_request(
        *PROMPTS, temperature=TEMPERATURE, repetition_penalty=penalty, max_tokens=8, **options
    )
    cut_off = 0
    for prompt, group in zip(PROMPTS, sample(model, request), strict=True):
        for completion in group:
            plain_TV, done_TV = processed(model, prompt, completion, [*penalise, *processors])
            logprobs_T = torch.tensor(completion.logprobs, dtype=dtype)
            close = {"rtol": 0, "atol": tolerance}
            torch.testing.assert_close(logprobs_T, at(plain_TV, completion), **close)
            if truncation is None:
                assert completion.kept_logmass is None
                continue
            kept_TV = done_TV.isfinite()
            cut_off += int((~kept_TV).sum())
            kept_logmass_T = torch.tensor(completion.kept_logmass, dtype=dtype)
            assert (kept_logmass_T <= 0).all()
            share_T = (plain_TV.softmax(-1) * kept_TV).sum(-1)
            torch.testing.assert_close(kept_logmass_T, share_T.log(), **close)
            if penalty == 1:
                drawn_T = logprobs_T - kept_logmass_T
                torch.testing.assert_close(drawn_T, at(done_TV, completion), **close)
    assert truncation is None or cut_off > 500


def test_a_truncation_that_cuts_nothing_off_keeps_all_mass(
    make_model: Callable[..., PreTrainedModel],
    make_request: Callable[..., GenerateRequest],
    sample: Sample,
) -> None:
    request = make_request(*PROMPTS, top_k=1000)
    for group in sample(make_model("qwen3"), request):
        assert all(set(completion.kept_logmass or ()) == {0.0} for completion in group)
