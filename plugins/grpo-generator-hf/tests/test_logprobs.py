"""What the generator reports, against one pass over each whole sequence, alone and uncached."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import LogitsProcessorList, PreTrainedModel

from grpo_core.types import Completion, GenerateRequest

ARCHITECTURES = ["qwen3", "tied", "llama", "gpt2", "mistral", "gemma2", "gemma3", "bloom"]
RECURRENT = ["mamba", "lfm2"]
# Of unlike lengths: some within the window of 4, some beyond.
PROMPTS = ((5, 9, 2, 7, 11, 30, 8, 1, 3), (4,), (17, 3, 3), (8, 1, 6, 40, 2, 33))

Sample = Callable[..., list[tuple[Completion, ...]]]


@pytest.mark.parametrize("architecture", ARCHITECTURES + RECURRENT)
def test_log_probs_are_those_of_a_full_pass(
    make_model: Callable[..., PreTrainedModel],
    make_request: Callable[..., GenerateRequest],
    sample: Sample,
    full_logprobs: Callable[..., torch.Tensor],
    caplog: pytest.LogCaptureFixture,
    architecture: str,
) -> None:
    model = make_model(architecture)
    request = make_request(
        *PROMPTS, temperature=0.8, group_size=6, eos_token_ids=(7, 20, 33, 41, 50)
    )
    with caplog.at_level(logging.WARNING, logger="grpo_generator_hf"):
        groups = sample(model, request)
    # Falling back to `generate` would pass the comparison too, and hide a broken fast path.
    expected = [type(model).__name__] if architecture in RECURRENT else []
    assert [record.args[0] for record in caplog.records if record.args] == expected
    lengths = set()
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for completion in group:
            lengths.add(len(completion.token_ids))
            expected_N = full_logprobs(model, prompt, completion, temperature=0.8)
            torch.testing.assert_close(
                torch.tensor(completion.logprobs), expected_N, rtol=0, atol=1e-5
            )
    # Rows have left the batch at different times, or compaction would not have been tested.
    assert len(lengths) > 3


@pytest.mark.parametrize("architecture", ["qwen3", "gpt2"])
def test_float64_models_report_float64(
    make_model: Callable[..., PreTrainedModel],
    make_request: Callable[..., GenerateRequest],
    sample: Sample,
    full_logprobs: Callable[..., torch.Tensor],
    architecture: str,
) -> None:
    model = make_model(architecture, torch.float64)
    for prompt, group in zip(PROMPTS, sample(model, make_request(*PROMPTS)), strict=True):
        for completion in group:
            found_N = torch.tensor(completion.logprobs, dtype=torch.float64)
            expected_N = full_logprobs(model, prompt, completion)
            torch.testing.assert_close(found_N, expected_N, rtol=0, atol=1e-12)


def test_bfloat16_weights(
    make_model: Callable[..., PreTrainedModel],
    make_request: Callable[..., GenerateRequest],
    sample: Sample,
    full_logprobs: Callable[..., torch.Tensor],
) -> None:
    model = make_model("qwen3", torch.bfloat16)
    differences = [
        (torch.tensor(completion.logprobs) - full_logprobs(model, prompt, completion)).abs()
        for prompt, group in zip(PROMPTS, sample(model, make_request(*PROMPTS)), strict=True)
        for completion in group
    ]
    # bfloat16 has 8 bits, and logits here are of order 10.
    assert torch.cat(differences).mean() < 0.05


def test_truncated_and_penalised_draws_report_the_truncated_distribution(
    make_model: Callable[..., PreTrainedModel],
    make_request: Callable[..., GenerateRequest],
    sample: Sample,
) -> None:
    from grpo_core.settings import SamplingParams
    from grpo_generator_hf.sampling import transform

    options: dict[str, Any] = {
        "temperature": 1.4,
        "top_k": 9,
        "top_p": 0.9,
        "min_p": 0.02,
        "repetition_penalty": 1.5,
    }
    model = make_model("qwen3")
    groups = sample(model, make_request(*PROMPTS, **options))
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for completion in group:
            ids = torch.tensor([[*prompt, *completion.token_ids]])
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0]
            for i, token in enumerate(completion.token_ids):
                end = len(prompt) + i
                seen = torch.zeros(1, logits.shape[-1], dtype=torch.bool)
                seen[0, ids[0, :end]] = True
                kept = transform(logits[end - 1 : end], SamplingParams(**options), seen)
                expected = float(kept.log_softmax(-1)[0, token])
                assert completion.logprobs[i] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("penalty", [1.0, 1.7])
def test_greedy_is_that_of_generate(
    make_model: Callable[..., PreTrainedModel],
    make_request: Callable[..., GenerateRequest],
    sample: Sample,
    full_logprobs: Callable[..., torch.Tensor],
    architecture: str,
    penalty: float,
) -> None:
    """Token by token, against `generate` on the same prompts, left-padded."""
    model, eos = make_model(architecture), [7, 20, 41]
    request = make_request(
        *PROMPTS, temperature=0, repetition_penalty=penalty, group_size=1, eos_token_ids=tuple(eos)
    )
    width = max(map(len, PROMPTS))
    pads = [width - len(prompt) for prompt in PROMPTS]
    padded = torch.tensor([[0] * pad + list(p) for pad, p in zip(pads, PROMPTS, strict=True)])
    mask = torch.tensor([[0] * pad + [1] * (width - pad) for pad in pads])
    expected = model.generate(
        padded,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=12,
        eos_token_id=eos,
        pad_token_id=0,
        logits_processor=LogitsProcessorList([_PenaltyWithoutPadding(penalty, pads)]),
    )
    for i, ((completion,), row) in enumerate(zip(sample(model, request), expected, strict=True)):
        tokens = row[width:].tolist()
        end = next((n for n, token in enumerate(tokens, 1) if token in eos), len(tokens))
        assert completion.token_ids == tuple(tokens[:end])
        assert completion.finish_reason == ("stop" if tokens[end - 1] in eos else "length")
        if penalty == 1:
            torch.testing.assert_close(
                torch.tensor(completion.logprobs),
                full_logprobs(model, PROMPTS[i], completion),
                rtol=0,
                atol=1e-5,
            )


class _PenaltyWithoutPadding:
    """Each row through transformers' own processor, its padding cut off."""

    def __init__(self, penalty: float, pads: list[int]) -> None:
        from transformers import RepetitionPenaltyLogitsProcessor

        self._penalise = RepetitionPenaltyLogitsProcessor(penalty)
        self._pads = pads

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        rows = [
            self._penalise(input_ids[i : i + 1, pad:], scores[i : i + 1])
            for i, pad in enumerate(self._pads)
        ]
        return torch.cat(rows)
