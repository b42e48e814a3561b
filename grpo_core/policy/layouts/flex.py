"""Segment attention for GPUs by FlexAttention (arXiv 2412.05496): one fused kernel, forward and
backward, that reads every key where it stands and never makes a mask of T x T.

Segments stand in depth-first order, so what stands below a key's segment is one run of the batch,
and "query q sees key k" is ``k <= q < end[k]``: one number per token. Which blocks of the mask are
empty or whole follows from the least and the greatest of these in each block of keys.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from grpo_core.policy.layouts.plan import AttentionPlan

BLOCK = 128
"""Queries and keys of a block, FlexAttention's own default; kernels take multiples of it."""

OPTIONS: Any = {"FORCE_USE_FLEX_ATTENTION": True}
"""Short batches too are computed by the kernel that was tried at the start."""


def fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: AttentionPlan,
    *,
    scaling: float | None,
    window: int | None,
    cap: float | None,
) -> Tensor:
    """``(1, heads, T, D)`` in, ``(1, T, heads, D)`` out; fewer heads of keys are shared evenly."""
    device = query.device.type
    if torch.is_autocast_enabled(device) and value.dtype != torch.float64:
        # The kernel wants one dtype, and rotary embeddings leave queries and keys in float32.
        dtype = torch.get_autocast_dtype(device)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if ("flex", window) not in plan.cache:
        plan.cache["flex", window] = block_mask(plan, window)
    out = _kernel(device)(
        query,
        key,
        value,
        score_mod=None if cap is None else _capped(cap),
        block_mask=plan.cache["flex", window],
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
        kernel_options=OPTIONS,
    )
    return cast("Tensor", out).transpose(1, 2).contiguous()


def block_mask(plan: AttentionPlan, window: int | None = None, *, size: int = BLOCK) -> BlockMask:
    """The tree as FlexAttention wants it; its own ``create_block_mask`` would look at every pair
    of tokens.

    Args:
        window: positions that a query sees, itself included; ``None`` for all.
        size: tokens of a block.
    """
    blocks = -(-plan.tokens // size)
    # What lies behind the last token is seen by nobody.
    end_T = torch.zeros(blocks * size, dtype=torch.int32)
    position_T = torch.zeros(blocks * size, dtype=torch.int32)
    for (start, length), end, before in zip(plan.spans, plan.ends, plan.before, strict=True):
        end_T[start : start + length] = end
        position_T[start : start + length] = torch.arange(before, before + length)
    some, every = _blocks(end_T, position_T, plan.tokens, window, size)
    device = plan.device
    return BlockMask.from_kv_blocks(
        *_listed(some & ~every, device),
        *_listed(every, device),
        BLOCK_SIZE=size,
        mask_mod=_visible(end_T.to(device), position_T.to(device), window),
        seq_lengths=(plan.tokens, plan.tokens),
    )


def _blocks(
    end_T: Tensor, position_T: Tensor, tokens: int, window: int | None, size: int
) -> tuple[Tensor, Tensor]:
    """bool ``(blocks of queries, blocks of keys)``: where any pair may see, and where all do."""
    first = torch.arange(0, len(end_T), size)
    last = (first + size).clamp(max=tokens)
    earlier = first[:, None] > first[None]
    ends, positions = end_T.view(-1, size), position_T.view(-1, size)
    some = earlier & (ends.amax(1)[None] > first[:, None])
    every = earlier & (ends.amin(1)[None] >= last[:, None])
    if window is not None:
        # The last block's padding stands at position 0, which only makes it less sure.
        low, high = positions.amin(1), positions.amax(1)
        some &= low[:, None] - high[None] < window
        every &= high[:, None] - low[None] < window
    return some | torch.eye(len(first), dtype=torch.bool), every


def _listed(chosen: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries has, and which: those first in the list."""
    count = chosen.sum(1, dtype=torch.int32)
    order = chosen.int().argsort(dim=1, descending=True, stable=True).int()
    return count[None, None].to(device), order[None, None].contiguous().to(device)


def _visible(end_T: Tensor, position_T: Tensor, window: int | None) -> Callable[..., Tensor]:
    def below(_: Tensor, __: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q) & (q < end_T[k])

    if window is None:
        return below
    width = window

    def near(_: Tensor, __: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q) & (q < end_T[k]) & (position_T[q] - position_T[k] < width)

    return near


def _capped(cap: float) -> Callable[..., Tensor]:
    """Gemma 2's cap on attention logits (arXiv 2408.00118)."""

    def capped(score: Tensor, *_: Tensor) -> Tensor:
        return torch.tanh(score / cap) * cap

    return capped


@cache
def _kernel(device: str) -> Callable[..., Any]:
    """Compiled on a GPU. On a CPU it is unfused and without backward: there ``inplace`` and
    ``dense`` are used, and this only to be compared with them."""
    plain = cast("Callable[..., Any]", flex_attention)
    return plain if device == "cpu" else torch.compile(plain)
