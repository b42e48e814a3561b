"""Turns: the same draws as in one request, whenever they come, and joined with what is decoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from grpo_core.errors import ConfigError, SyncError
from grpo_core.settings import SamplingParams
from grpo_core.types import GenerateRequest, SampledTurn, Turn, TurnRequest
from grpo_generator_hf import HFGenerator

PROMPTS = ((1, 2, 3), (4, 5, 6, 7, 8))
GROUP, TOKENS = 3, 12


def turns(number: int = 0) -> list[Turn]:
    return [
        Turn(prompt_ids=ids, key=key, sample=sample, number=number, max_tokens=TOKENS)
        for key, ids in enumerate(PROMPTS)
        for sample in range(GROUP)
    ]


def request(take: Callable[[bool], Sequence[Turn]], **options: Any) -> TurnRequest:
    fields: dict[str, Any] = {"longest": 60, "rollouts": 6, "eos_token_ids": (9, 17), **options}
    return TurnRequest(
        step=3,
        seed=11,
        group_size=GROUP,
        sampling=SamplingParams(max_tokens=TOKENS, temperature=0.9),
        take=take,
        **fields,
    )


def one_after_the_other(waiting: list[Turn]) -> Callable[[bool], Sequence[Turn]]:
    """A turn with every question, so that they join while others are being decoded."""
    return lambda wait: [waiting.pop()] if waiting else []


def by_place(found: Sequence[SampledTurn]) -> dict[tuple[int, int, int], tuple[int, ...]]:
    return {(s.turn.key, s.turn.sample, s.turn.number): s.completion.token_ids for s in found}


@pytest.mark.parametrize("architecture", ["qwen3", "gemma2", "mamba"])
def test_first_turns_equal_one_request(
    architecture: str, make_model: Any, make_generator: Any, make_request: Callable[..., Any]
) -> None:
    """Through fused weights, the model's own forward, and `model.generate`."""
    generator: HFGenerator = make_generator(make_model(architecture, torch.float64))
    whole: GenerateRequest = make_request(
        *PROMPTS, group_size=GROUP, max_tokens=TOKENS, temperature=0.9, eos_token_ids=(9, 17)
    )
    expected = {
        (group.index, sample, 0): completion.token_ids
        for group in generator.generate(whole)
        for sample, completion in enumerate(group.completions_G)
    }
    together = [turns()]
    found = list(generator.sample_turns(request(lambda wait: together.pop() if together else [])))
    assert by_place(found) == expected
    late = list(generator.sample_turns(request(one_after_the_other(turns()))))
    assert by_place(late) == expected
    assert {s.policy_version for s in found} == {0}


def test_a_split_completion_is_the_whole_one(
    make_model: Any, make_generator: Any, full_logprobs: Callable[..., torch.Tensor]
) -> None:
    """Random numbers and log-probs go on where the first part ended."""
    generator: HFGenerator = make_generator(make_model("qwen3", torch.float64))
    whole = [turns()]
    options: dict[str, Any] = {"eos_token_ids": ()}
    (expected,) = [
        by_place(
            list(
                generator.sample_turns(
                    request(lambda wait: whole.pop() if whole else [], **options)
                )
            )
        )
    ]
    ready = [
        Turn(prompt_ids=t.prompt_ids, key=t.key, sample=t.sample, number=0, max_tokens=5)
        for t in turns()
    ]

    def take(wait: bool) -> Sequence[Turn]:
        handed, ready[:] = list(ready), []
        return handed

    found: dict[tuple[int, int], tuple[int, ...]] = {}
    for sampled in generator.sample_turns(request(take, **options)):
        turn, ids = sampled.turn, sampled.completion.token_ids
        place = turn.key, turn.sample
        found[place] = found.get(place, ()) + ids
        logps = full_logprobs(generator._held.model, turn.prompt_ids, sampled.completion, 0.9)  # type: ignore[union-attr]
        assert torch.allclose(logps, torch.tensor(sampled.completion.logprobs, dtype=logps.dtype))
        if turn.number == 0:
            ready.append(
                Turn(
                    prompt_ids=(*turn.prompt_ids, *ids),
                    key=turn.key,
                    sample=turn.sample,
                    number=1,
                    max_tokens=TOKENS - 5,
                )
            )
    assert {(key, sample, 0): ids for (key, sample), ids in found.items()} == expected


def test_what_cannot_be_served(make_model: Any, make_generator: Any) -> None:
    generator: HFGenerator = make_generator(make_model(), tokens_in_cache=50)
    with pytest.raises(ConfigError, match=r"tokens_in_cache is 50.*may need 60 positions"):
        generator.sample_turns(request(lambda wait: []))
    generator.close()
    with pytest.raises(SyncError, match="has no weights"):
        generator.sample_turns(request(lambda wait: []))
