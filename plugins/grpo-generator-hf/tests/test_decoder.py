"""What the decoder computes and holds: nothing twice, nothing ended, nothing beyond its bounds."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from grpo_core.types import Completion, GenerateRequest
from grpo_generator_hf.buffer import closed_ranks
from grpo_generator_hf.slots import Admission, Slots

SHORT = ((5, 9, 2, 7, 11, 30, 8, 1, 3), (4,), (17, 3, 3), (8, 1, 6, 40, 2, 33))
LONG = tuple(tuple((7 * i + s) % 61 for i in range(n)) for s, n in ((0, 140), (1, 171), (2, 132)))
EOS = (7, 20, 33, 41, 50)

Sample = Callable[..., list[tuple[Completion, ...]]]
MakeModel = Callable[..., PreTrainedModel]
MakeRequest = Callable[..., GenerateRequest]


@pytest.mark.parametrize("prompts", [SHORT, LONG], ids=["short", "long"])
@pytest.mark.parametrize("bounds", [{}, {"rows_at_once": 7}, {"tokens_in_cache": 400}], ids=str)
def test_each_prompt_once_and_each_token_once(
    make_model: MakeModel,
    make_request: MakeRequest,
    sample: Sample,
    prompts: tuple[tuple[int, ...], ...],
    bounds: dict[str, int],
) -> None:
    """Token positions that reach the model: a group's prompt once, and every token of a completion
    but its last. Neither padding nor rows that have ended."""
    model, computed = make_model(), []
    model.model.embed_tokens.register_forward_hook(
        lambda module, inputs, output: computed.append(inputs[0].numel())
    )
    request = make_request(*prompts, group_size=6, eos_token_ids=EOS)
    generator_trial = len(_computed_by_trial(model, sample, make_request, computed))
    groups = sample(model, request, fused=False, **bounds)
    lengths = [len(completion.token_ids) for group in groups for completion in group]
    expected = sum(map(len, prompts)) + sum(lengths) - len(lengths)
    assert sum(computed[generator_trial:]) == expected
    assert len(set(lengths)) > 3


def _computed_by_trial(
    model: PreTrainedModel, sample: Sample, make_request: MakeRequest, computed: list[int]
) -> list[int]:
    """What trying the model out computes, which is not part of a request."""
    sample(model, make_request((1,), group_size=1, max_tokens=1), fused=False)
    trial = computed[:-1]
    computed.clear()
    return trial


@pytest.mark.parametrize("prompts", [SHORT, LONG], ids=["short", "long"])
@pytest.mark.parametrize("bounds", [{"rows_at_once": 13}, {"tokens_in_cache": 380}], ids=str)
def test_groups_come_as_soon_as_there_is_room(
    make_model: MakeModel,
    make_request: MakeRequest,
    sample: Sample,
    monkeypatch: pytest.MonkeyPatch,
    prompts: tuple[tuple[int, ...], ...],
    bounds: dict[str, int],
) -> None:
    model, held, positions = make_model(), [], []
    request = make_request(*prompts, group_size=6, eos_token_ids=EOS)
    advance = Slots.advance

    def watching(slots: Slots) -> Any:
        held.append(len(slots))
        layer = next(iter(slots._layers.values()))
        positions.append(sum(b.held[:, 0, :, 0].numel() for b in (layer.rows[0], layer.prompts[0])))
        return advance(slots)

    monkeypatch.setattr(Slots, "advance", watching)
    sample(model, request, **bounds)
    assert max(held) <= bounds.get("rows_at_once", 128)
    # Buffers grow ahead by a quarter and 16 positions.
    assert max(positions) <= 1.25 * bounds.get("tokens_in_cache", 65536) + 16 * max(held)
    # Somebody came while others were still there, not when all had left.
    assert any(before < after for before, after in pairwise(held))
    assert min(held[:-1]) > 0


@given(st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)))))
def test_places_are_filled_from_the_end(case: tuple[int, set[int]]) -> None:
    places, empty = case
    order, holes = closed_ranks(places, sorted(empty))
    assert sorted(order) == [i for i in range(places) if i not in empty]
    # Only holes move: a row's keys and values stay where they are while others leave.
    assert holes == [place for place, source in enumerate(order) if source != place]


@pytest.mark.parametrize("shared", [True, False])
def test_what_a_leaver_leaves_behind_is_not_seen(shared: bool) -> None:
    """A NaN in the place of a row that has gone must not reach the one that moves in."""
    from grpo_generator_hf.attention import Variant

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))

    slots, variant = Slots(shared=shared, device=torch.device("cpu")), Variant(scaling=1.0)
    slots.admit([Admission(prompt_ids=(1, 2, 3), rows=3)])
    slots.prefill(0, normal(1, 4, 3, 8), normal(1, 2, 3, 8), normal(1, 2, 3, 8), variant)
    slots.advance()
    key = normal(3, 2, 8)
    key[0] = torch.nan
    slots.step(0, normal(3, 4, 8), key, normal(3, 2, 8), variant)
    assert slots.leave([0]) == [2, 1]
    slots.advance()
    assert (
        slots.step(0, normal(2, 4, 8), normal(2, 2, 8), normal(2, 2, 8), variant).isfinite().all()
    )
