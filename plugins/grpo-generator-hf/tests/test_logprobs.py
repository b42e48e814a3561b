"""What the generator reports, against one pass over each whole sequence, alone and uncached."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from transformers import LogitsProcessorList, PreTrainedModel

from grpo_core.types import Completion, GenerateRequest

FUSED = ["qwen3", "tied", "llama", "qwen2"]
ARCHITECTURES = [
    *FUSED,
    "gpt2",
    "phi",
    "phi3",
    "mistral",
    "gemma2",
    "gemma3",
    "cohere",
    "qwen3-moe",
]
FALLING_BACK = ["mamba", "lfm2", "bloom"]
# Of unlike lengths: some within the window of 4, some beyond.
PROMPTS = ((5, 9, 2, 7, 11, 30, 8, 1, 3), (4,), (17, 3, 3), (8, 1, 6, 40, 2, 33))
# Long enough for their keys and values to be shared by the rows of a group.
LONG_PROMPTS = tuple(
    tuple((7 * i + s) % 61 for i in range(length)) for s, length in ((0, 140), (1, 171), (2, 132))
)

Sample = Callable[..., list[tuple[Completion, ...]]]


@pytest.mark.parametrize("bounds", [{}, {"rows_at_once": 7}], ids=["together", "in turn"])
@pytest.mark.parametrize("prompts", [PROMPTS, LONG_PROMPTS], ids=["short", "long"])
@pytest.mark.parametrize("architecture", ARCHITECTURES + FALLING_BACK)
def test_log_probs_are_those_of_a_full_pass(
    make_model: Callable[..., PreTrainedModel],
    make_request: Callable[..., GenerateRequest],
    sample: Sample,
    full_logprobs: Callable[..., torch.Tensor],
    caplog: pytest.LogCaptureFixture,
    architecture: str,
    prompts: tuple[tuple[int, ...], ...],
    bounds: dict[str, int],
) -> None:
    model = make_model(architecture)
    request = make_request(
        *prompts, temperature=0.8, group_size=6, eos_token_ids=(7, 20, 33, 41, 50)
    )
    with caplog.at_level(logging.INFO, logger="grpo_generator_hf"):
        groups = sample(model, request, **bounds)
    # A slower way would pass the comparison too, and hide that the faster one is broken.
    slower = [] if architecture in FUSED else [type(model).__name__]
    assert [record.args[0] for record in caplog.records if record.args] == slower
    way = "through model.generate" if architecture in FALLING_BACK else "through its own forward"
    assert not slower or way in caplog.text
    lengths = set()
    for prompt, group in zip(prompts, groups, strict=True):
        for completion in group:
            lengths.add(len(completion.token_ids))
            expected_N = full_logprobs(model, prompt, completion, temperature=0.8)
            torch.testing.assert_close(
                torch.tensor(completion.logprobs), expected_N, rtol=0, atol=2e-5
            )
    # Rows have left at different times, or closing their ranks would not have been tested.
    assert len(lengths) > 3


# The grouped products of experts have no float64.
@pytest.mark.parametrize("architecture", [a for a in ARCHITECTURES if a != "qwen3-moe"])
def test_both_ways_of_decoding_draw_the_same(
    make_model: Callable[..., PreTrainedModel],
    make_request: Callable[..., GenerateRequest],
    sample: Sample,
    architecture: str,
) -> None:
    """In float64, where no rounding reaches the edge between two tokens."""
    model = make_model(architecture, torch.float64)
    for prompts in (PROMPTS, LONG_PROMPTS):
        request = make_request(*prompts, group_size=3)
        for group, other in zip(
            sample(model, request), sample(model, request, fused=False), strict=True
        ):
            assert [c.token_ids for c in group] == [c.token_ids for c in other]


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
        # Of the untempered softmax, the penalty's effect left out.
        torch.testing.assert_close(
            torch.tensor(completion.logprobs),
            full_logprobs(model, PROMPTS[i], completion),
            rtol=0,
            atol=1e-5,
        )
        assert completion.kept_logmass is None


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
