"""What is decoded together: everything once, within the bounds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_core.errors import ConfigError, DataError
from grpo_core.types import GenerateRequest
from grpo_generator_hf.config import HFConfig
from grpo_generator_hf.rows import Row, admission_order, check, room

MAX_TOKENS = 5


@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=12),
    group_size=st.integers(1, 9),
    rows_at_once=st.integers(1, 20),
    tokens_in_cache=st.integers(25, 200),
    shared=st.booleans(),
)
def test_everything_once_in_parts_that_fit(
    make_request: Callable[..., GenerateRequest],
    lengths: list[int],
    group_size: int,
    rows_at_once: int,
    tokens_in_cache: int,
    shared: bool,
) -> None:
    prompts = tuple((1,) * length for length in lengths)
    request = make_request(*prompts, group_size=group_size, max_tokens=MAX_TOKENS)
    config = HFConfig(rows_at_once=rows_at_once, tokens_in_cache=tokens_in_cache)
    bounds = room(request, config, shared=shared)
    units = admission_order(request, bounds)
    rows = [row for unit in units for row in unit]
    assert sorted((row.prompt, row.sample) for row in rows) == [
        (prompt, sample) for prompt in range(len(lengths)) for sample in range(group_size)
    ]
    longest = max(lengths)
    for unit in units:
        assert bounds.fits(len(unit), 1)
        assert len({row.prompt for row in unit}) == 1
        held = longest + len(unit) * MAX_TOKENS if shared else len(unit) * (longest + MAX_TOKENS)
        assert len(unit) <= rows_at_once
        assert held <= tokens_in_cache
    # A group comes in parts only if it can never be there whole.
    assert len(units) == len(lengths) or not bounds.fits(group_size, 1)


def test_longest_prompts_first(make_request: Callable[..., GenerateRequest]) -> None:
    prompts = tuple((1,) * length for length in (2, 9, 3, 8))
    request = make_request(*prompts, group_size=2)
    units = admission_order(request, room(request, HFConfig(), shared=False))
    assert [unit[0].prompt for unit in units] == [1, 3, 2, 0]
    first = Row(prompt=1, sample=0, prompt_ids=prompts[1], key=1, max_tokens=12)
    assert units[0][0] == first


def test_a_bound_too_small_for_one_row(make_request: Callable[..., GenerateRequest]) -> None:
    with pytest.raises(ConfigError, match=r"tokens_in_cache is 10.*need 19 positions"):
        room(make_request((1,) * 7), HFConfig(tokens_in_cache=10), shared=True)


def test_a_prompt_without_tokens(make_request: Callable[..., GenerateRequest]) -> None:
    with pytest.raises(DataError, match="prompt 1 of 2 has no tokens"):
        check(make_request((1,), ()), None)


def test_a_prompt_beyond_the_context(make_request: Callable[..., GenerateRequest]) -> None:
    check(make_request((1,) * 20), 32)
    with pytest.raises(
        DataError, match=r"has 21 tokens; with sampling.max_tokens=12 that is 33.*context is 32"
    ):
        check(make_request((1,) * 21), 32)


def test_inputs_other_than_tokens_are_not_dropped_silently(
    make_request: Callable[..., GenerateRequest],
) -> None:
    check(make_request((1,)), None)
    request = make_request((1,))
    with_image = GenerateRequest(
        **{name: getattr(request, name) for name in request.__slots__ if name != "inputs_P"},
        inputs_P=({"pixel_values": object()},),
    )
    with pytest.raises(ConfigError, match=r"text only.*pixel_values"):
        check(with_image, None)
