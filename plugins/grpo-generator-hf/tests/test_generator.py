"""The generator as a whole: what a completion depends on, how it ends, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from grpo_core.errors import DataError, SyncError
from grpo_core.protocols import Generator
from grpo_core.types import Completion, GenerateRequest
from grpo_generator_hf.generator import HFGenerator

PROMPTS = ((5, 9, 2, 7, 11, 30, 8, 1, 3), (4,), (17, 3, 3), (8, 1, 6, 40, 2, 33))
EOS = (7, 20, 33, 41, 50)

Sample = Callable[..., list[tuple[Completion, ...]]]
MakeModel = Callable[..., PreTrainedModel]
MakeRequest = Callable[..., GenerateRequest]


def tokens(groups: list[tuple[Completion, ...]]) -> list[list[tuple[int, ...]]]:
    return [[completion.token_ids for completion in group] for group in groups]


def test_it_is_a_generator_and_needs_no_config() -> None:
    assert isinstance(HFGenerator(), Generator)


# -- what a completion depends on -------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["qwen3", "gpt2", "gemma3"])
def test_batching_does_not_change_a_completion(
    make_model: MakeModel, make_request: MakeRequest, sample: Sample, architecture: str
) -> None:
    """In float64, where no rounding reaches the edge between two tokens."""
    model = make_model(architecture, torch.float64)
    request = make_request(*PROMPTS, eos_token_ids=EOS, group_size=5)
    together = sample(model, request)
    for rows_at_once in (1, 3, 5, 7, 11):
        assert tokens(sample(model, request, rows_at_once=rows_at_once)) == tokens(together)
    assert tokens(sample(model, request, tokens_in_cache=60)) == tokens(together)
    order = [2, 0, 3, 1]
    shuffled = replace(
        request,
        prompt_ids_P=tuple(PROMPTS[i] for i in order),
        prompt_keys_P=tuple(request.prompt_keys_P[i] for i in order),
    )
    assert tokens(sample(model, shuffled)) == [tokens(together)[i] for i in order]
    for i, prompt in enumerate(PROMPTS):
        alone = replace(request, prompt_ids_P=(prompt,), prompt_keys_P=(i,))
        (group,) = sample(model, alone)
        assert tokens([group]) == [tokens(together)[i]]
        for found, expected in zip(group, together[i], strict=True):
            assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-12)


def test_a_smaller_group_is_the_beginning_of_a_larger_one(
    make_model: MakeModel, make_request: MakeRequest, sample: Sample
) -> None:
    model = make_model("qwen3", torch.float64)
    large = sample(model, make_request(*PROMPTS, group_size=6))
    small = sample(model, make_request(*PROMPTS, group_size=2))
    assert [group[:2] for group in tokens(large)] == tokens(small)


def test_a_completion_continued_is_the_same_completion(
    make_model: MakeModel, make_request: MakeRequest, sample: Sample
) -> None:
    """Random numbers belong to places in the sequence: a later turn draws new ones. Long enough
    for more than one block of them."""
    model = make_model("gpt2", torch.float64)
    ((whole,),) = sample(model, make_request((5, 9, 2), group_size=1, max_tokens=80))
    for cut in (1, 40, 70):
        prefix = (5, 9, 2, *whole.token_ids[:cut])
        ((rest,),) = sample(model, make_request(prefix, group_size=1, max_tokens=80 - cut))
        assert rest.token_ids == whole.token_ids[cut:]


@pytest.mark.parametrize("change", [{"seed": 12}, {"step": 4}, {"step": -4}])
def test_seed_and_step_change_everything(
    make_model: MakeModel, make_request: MakeRequest, sample: Sample, change: dict[str, int]
) -> None:
    model = make_model()
    first = sample(model, make_request(*PROMPTS))
    second = sample(model, make_request(*PROMPTS, **change))
    assert tokens(first) == tokens(sample(model, make_request(*PROMPTS)))
    assert not set(chain(*tokens(first))) & set(chain(*tokens(second)))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 1.3, "top_k": 20, "top_p": 0.8, "min_p": 0.01},
        {"repetition_penalty": 2.0},
    ],
    ids=str,
)
def test_first_tokens_follow_the_distribution(
    make_model: MakeModel,
    make_request: MakeRequest,
    sample: Sample,
    chi_square_p: Callable[[torch.Tensor, torch.Tensor], float],
    options: dict[str, Any],
) -> None:
    from transformers import (
        LogitsProcessorList,
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    model, count = make_model(), 4000
    request = make_request(*PROMPTS[:2], group_size=count, max_tokens=1, **options)
    processors = LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(options.get("repetition_penalty", 1.0)),
            TemperatureLogitsWarper(float(options.get("temperature", 1.0))),
            TopKLogitsWarper(options.get("top_k", 61)),
            TopPLogitsWarper(options.get("top_p", 1.0)),
            MinPLogitsWarper(options.get("min_p", 0.0)),
        ]
    )
    for prompt, group in zip(PROMPTS, sample(model, request, rows_at_once=8000), strict=False):
        ids = torch.tensor([prompt])
        with torch.no_grad():
            expected_V = processors(ids, model(input_ids=ids).logits[:, -1]).softmax(-1)[0]
        observed_V = torch.tensor([completion.token_ids[0] for completion in group])
        assert chi_square_p(observed_V.bincount(minlength=61), count * expected_V) > 0.001


# -- how a completion ends --------------------------------------------------------------------


def test_every_end_token_ends_and_is_kept(
    make_model: MakeModel, make_request: MakeRequest, sample: Sample
) -> None:
    model = make_model()
    free = sample(model, make_request(*PROMPTS, group_size=8))
    ended = sample(model, make_request(*PROMPTS, group_size=8, eos_token_ids=EOS))
    seen = set()
    for long, short in zip(chain(*free), chain(*ended), strict=True):
        assert (long.finish_reason, len(long.token_ids)) == ("length", 12)
        end = next((n for n, t in enumerate(long.token_ids, 1) if t in EOS), 12)
        assert short.token_ids == long.token_ids[:end]
        assert short.finish_reason == ("stop" if short.token_ids[-1] in EOS else "length")
        assert len(short.logprobs) == len(short.token_ids)
        seen.add(short.token_ids[-1])
    assert len(seen & set(EOS)) > 2


def test_an_end_token_in_the_last_place_is_a_stop(
    make_model: MakeModel, make_request: MakeRequest, sample: Sample
) -> None:
    model = make_model()
    ((free,),) = sample(model, make_request((4,), group_size=1, max_tokens=3))
    last = free.token_ids[-1:]
    assert last[0] not in free.token_ids[:-1]
    ((ended,),) = sample(model, make_request((4,), group_size=1, max_tokens=3, eos_token_ids=last))
    assert ended.token_ids == free.token_ids
    assert ended.finish_reason == "stop"


def test_a_stop_string_ends_with_the_token_that_completes_it(
    make_model: MakeModel, make_request: MakeRequest, sample: Sample, tokenizer: Any
) -> None:
    """Ids below 61 are single printable characters of the test tokenizer."""
    model = make_model()
    everything = list(chain(*sample(model, make_request(*PROMPTS))))
    stop = tokenizer.decode(everything[0].token_ids)[4:6]
    ended = chain(*sample(model, make_request(*PROMPTS, stop=("nowhere", stop))))
    stopped = 0
    for short, long in zip(ended, everything, strict=True):
        assert short.token_ids == long.token_ids[: len(short.token_ids)]
        found = stop in tokenizer.decode(short.token_ids)
        assert short.finish_reason == ("stop" if found else "length")
        assert stop not in tokenizer.decode(short.token_ids[:-1])
        stopped += found
    assert stopped


# -- refusals ---------------------------------------------------------------------------------


def test_requests_that_cannot_be_served_fail_at_the_call(
    make_model: MakeModel, make_request: MakeRequest, make_generator: Callable[..., HFGenerator]
) -> None:
    generator = make_generator(make_model())
    with pytest.raises(DataError, match="prompt 0 of 1 has no tokens"):
        generator.generate(make_request(()))
    with pytest.raises(
        DataError, match=r"max_tokens=252 that is 257, but the model's context is 256"
    ):
        generator.generate(make_request((1,) * 5, max_tokens=252))
    assert len(list(generator.generate(make_request((1,) * 4, max_tokens=252)))) == 1


def test_without_weights(make_request: MakeRequest) -> None:
    with pytest.raises(SyncError, match=r"sync\(\) must come before generate\(\)"):
        HFGenerator().generate(make_request((1,)))


def test_weights_that_change_while_a_request_is_served(
    make_model: MakeModel, make_request: MakeRequest, make_generator: Callable[..., HFGenerator]
) -> None:
    generator = make_generator(make_model(), rows_at_once=4)
    groups = generator.generate(make_request(*PROMPTS))
    next(groups)
    generator.close()
    with pytest.raises(SyncError, match="synced or closed while it was sampling step 3"):
        next(groups)
