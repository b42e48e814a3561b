"""Sampling through `model.generate` must give what the decode loop gives."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from transformers import GPT2LMHeadModel, PreTrainedModel

from grpo_core.types import Completion, GenerateRequest

PROMPTS = ((5, 9, 2, 7, 11, 30, 8, 1, 3), (4,), (17, 3, 3), (8, 1, 6, 40, 2, 33))
EOS = (7, 20, 33, 41, 50)
OPTIONS = {"temperature": 1.2, "top_p": 0.9, "repetition_penalty": 1.3, "stop": ("a", "%")}

Sample = Callable[..., list[tuple[Completion, ...]]]
MakeModel = Callable[..., PreTrainedModel]
MakeRequest = Callable[..., GenerateRequest]


@pytest.mark.parametrize("options", [{}, {"temperature": 0}, OPTIONS], ids=["plain", "0", "all"])
def test_it_draws_the_same_tokens(
    make_model: MakeModel,
    make_request: MakeRequest,
    sample: Sample,
    options: dict[str, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make_model("qwen3")
    request = make_request(*PROMPTS[:3], eos_token_ids=EOS, max_tokens=8, **options)
    expected = sample(model, request)
    monkeypatch.setattr(type(model), "_is_stateful", True)
    # What the checkpoint wants of `generate` must not reach the draws.
    model.generation_config.suppress_tokens = list(range(30))
    model.generation_config.min_new_tokens = 9
    model.generation_config.top_k = 2
    before = model.generation_config.to_dict()
    for rows_at_once in (128, 9):
        found = sample(model, request, rows_at_once=rows_at_once)
        for group, expected_group in zip(found, expected, strict=True):
            for completion, other in zip(group, expected_group, strict=True):
                assert completion.token_ids == other.token_ids
                assert completion.finish_reason == other.finish_reason
                assert completion.logprobs == pytest.approx(other.logprobs, abs=1e-5)
    assert model.generation_config.to_dict() == before


def test_no_global_random_numbers(
    make_model: MakeModel, make_request: MakeRequest, sample: Sample
) -> None:
    model = make_model("mamba")
    before = torch.get_rng_state()
    first = sample(model, make_request(*PROMPTS[:2]))
    assert torch.get_rng_state().equal(before)
    assert sample(model, make_request(*PROMPTS[:2])) == first


class PositionBlind(GPT2LMHeadModel):
    """Counts positions itself: right when alone, wrong beside others, and nothing says so."""

    def forward(
        self,
        input_ids: torch.Tensor,
        past_key_values: object = None,
        use_cache: bool | None = None,
        position_ids: torch.Tensor | None = None,
        **kwargs: object,
    ) -> object:
        return super().forward(
            input_ids=input_ids, past_key_values=past_key_values, use_cache=use_cache, **kwargs
        )


def test_a_model_that_batching_would_falsify_is_found_out(
    make_model: MakeModel,
    make_request: MakeRequest,
    sample: Sample,
    full_logprobs: Callable[..., torch.Tensor],
    caplog: pytest.LogCaptureFixture,
) -> None:
    sound = make_model("gpt2")
    model = PositionBlind(sound.config).eval()
    model.load_state_dict(sound.state_dict())
    with caplog.at_level(logging.WARNING, logger="grpo_generator_hf"):
        groups = sample(model, make_request(*PROMPTS))
    assert "PositionBlind is sampled through model.generate" in caplog.text
    assert "its logits differ by" in caplog.text
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for completion in group:
            expected_N = full_logprobs(sound, prompt, completion)
            found_N = torch.tensor(completion.logprobs)
            torch.testing.assert_close(found_N, expected_N, atol=1e-5, rtol=0)


def test_it_is_said_once(
    make_model: MakeModel,
    make_request: MakeRequest,
    make_generator: Callable[..., object],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, logger="grpo_generator_hf"):
        generator = make_generator(make_model("mamba"))
        for _ in range(2):
            generator.sync(generator._held)  # type: ignore[attr-defined]
            list(generator.generate(make_request((1, 2), group_size=1)))  # type: ignore[attr-defined]
    assert caplog.text.count("is sampled through model.generate") == 1
