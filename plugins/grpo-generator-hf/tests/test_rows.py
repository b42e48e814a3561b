"""Which rows share a batch: everything once, within the bounds."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_core.errors import ConfigError, DataError
from grpo_core.types import GenerateRequest
from grpo_generator_hf.config import HFConfig
from grpo_generator_hf.rows import Row, check, plan

MAX_TOKENS = 5


@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=12),
    group_size=st.integers(1, 9),
    rows_per_batch=st.integers(1, 20),
    tokens_in_cache=st.integers(25, 200),
)
def test_everything_once_within_the_bounds(
    make_request: Callable[..., GenerateRequest],
    lengths: list[int],
    group_size: int,
    rows_per_batch: int,
    tokens_in_cache: int,
) -> None:
    prompts = tuple((1,) * length for length in lengths)
    request = make_request(*prompts, group_size=group_size, max_tokens=MAX_TOKENS)
    config = HFConfig(rows_per_batch=rows_per_batch, tokens_in_cache=tokens_in_cache)
    batches = plan(request, config)
    rows = [row for batch in batches for row in batch]
    assert sorted((row.prompt, row.sample) for row in rows) == [
        (prompt, sample) for prompt in range(len(lengths)) for sample in range(group_size)
    ]
    for batch in batches:
        width = max(lengths[row.prompt] for row in batch) + MAX_TOKENS
        assert len(batch) <= rows_per_batch
        assert len(batch) * width <= tokens_in_cache
    # A group is in more than one batch only if no batch could hold it.
    for prompt, same in groupby(rows, key=lambda row: row.prompt):
        parts = [batch for batch in batches if any(row.prompt == prompt for row in batch)]
        width = lengths[prompt] + MAX_TOKENS
        assert len(list(same)) == group_size
        assert len(parts) == 1 or group_size > min(rows_per_batch, tokens_in_cache // width)


def test_prompts_of_like_length_are_together(make_request: Callable[..., GenerateRequest]) -> None:
    prompts = tuple((1,) * length for length in (2, 9, 3, 8))
    batches = plan(make_request(*prompts, group_size=2), HFConfig(rows_per_batch=4))
    assert [{row.prompt for row in batch} for batch in batches] == [{1, 3}, {0, 2}]
    assert batches[0][0] == Row(prompt=1, sample=0)


def test_a_bound_too_small_for_one_row(make_request: Callable[..., GenerateRequest]) -> None:
    with pytest.raises(ConfigError, match=r"tokens_in_cache is 10.*need 19 positions"):
        plan(make_request((1,) * 7), HFConfig(tokens_in_cache=10))


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
