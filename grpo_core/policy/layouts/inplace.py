"""Segment attention on a CPU that copies no keys: partial attentions, joined by their log-sums.

A softmax over several sets of keys is the mean of the softmaxes over each, weighted by the
exponentials of their log-sums (FlashAttention's own recurrence, arXiv 2205.14135, across segments
in place of tiles). So the keys of a prompt are read where they stand by one product with the
queries of all completions, which stand behind it as one slice. In backward the kernel gets the
joint output and log-sum, and then each part's gradient is exact and they add up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from grpo_core.policy.layouts.plan import AttentionPlan

WASTE = 1.5
"""A block may hold this many times the query-key pairs that its segments need."""

LONG = 64
"""Segments from this many tokens on are computed where they stand, shorter ones copied together
into blocks, since every call of the kernel has a fixed cost. Not swept: any value gives the same
numbers."""

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnBlock:
    """Short segments of like length, padded at the end with copies of their last token."""

    index_SW: Tensor
    """int64, which token of the batch stands where."""
    padding_SW: Tensor | None
    """bool; ``None`` when nothing is padded."""
    source_R: Tensor
    """int64, where the block's real tokens stand in its flattened rows."""
    target_R: Tensor
    """int64, where they stand in the batch."""


Own = slice | OwnBlock
"""Segments whose attention to themselves is computed together: a slice of the batch or copies."""


def applies(query: Tensor, value: Tensor, window: int | None, plan: AttentionPlan) -> bool:
    """Whether this kernel can compute it; the dense blocks can always."""
    return (
        query.device.type == "cpu"
        and query.shape[-1] == value.shape[-1]
        and (window is None or window >= plan.depth)
    )


def inplace_attention(
    query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, scaling: float | None
) -> Tensor:
    """``(T, heads, D)`` in and out; fewer heads of keys than of queries are shared evenly."""
    if torch.is_autocast_enabled("cpu") and value.dtype != torch.float64:
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if "own" not in plan.cache:
        plan.cache["own"] = _own_blocks(plan)
    out: Tensor = _Segments.apply(query, key, value, plan, scaling)  # type: ignore[no-untyped-call]
    return out


class _Segments(Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        plan: AttentionPlan,
        scaling: float | None,
    ) -> Tensor:
        out = torch.empty(query.shape, dtype=query.dtype)
        log_sum = torch.empty(
            query.shape[:2], dtype=torch.float64 if query.dtype == torch.float64 else torch.float32
        )
        for own in plan.cache["own"]:
            part, part_sum = _forward(
                *(_taken(x, own) for x in (query, key, value)), 0.0, True, scale=scaling
            )
            _put(out, own, part.transpose(1, 2))
            _put(log_sum, own, part_sum.transpose(1, 2))
        for keys, queries in _above(plan):
            part, part_sum = _forward(
                _heads(query[queries]),
                _heads(key[keys]),
                _heads(value[keys]),
                0.0,
                False,
                scale=scaling,
            )
            so_far, part_sum = log_sum[queries], part_sum[0].T
            share = torch.sigmoid(part_sum - so_far)[..., None].to(out.dtype)
            out[queries].lerp_(part[0].transpose(0, 1), share)
            torch.logaddexp(so_far, part_sum, out=so_far)
        ctx.save_for_backward(query, key, value, out, log_sum)
        ctx.plan, ctx.scaling = plan, scaling
        return out

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        query, key, value, out, log_sum = ctx.saved_tensors
        grads = [torch.empty(x.shape, dtype=x.dtype) for x in (query, key, value)]
        for own in ctx.plan.cache["own"]:
            grad_own = _taken(grad, own)
            if isinstance(own, OwnBlock) and own.padding_SW is not None:
                grad_own = grad_own.masked_fill(own.padding_SW[:, None, :, None], 0)
            parts = _backward(
                grad_own,
                *(_taken(x, own) for x in (query, key, value, out)),
                _taken(log_sum, own),
                0.0,
                True,
                scale=ctx.scaling,
            )
            for whole, part in zip(grads, parts, strict=True):
                _put(whole, own, part.transpose(1, 2))
        for keys, queries in _above(ctx.plan):
            parts = _backward(
                _heads(grad[queries]),
                _heads(query[queries]),
                _heads(key[keys]),
                _heads(value[keys]),
                _heads(out[queries]),
                log_sum[queries].T[None],
                0.0,
                False,
                scale=ctx.scaling,
            )
            for whole, where, part in zip(grads, (queries, keys, keys), parts, strict=True):
                whole[where] += part[0].transpose(0, 1)
        grad_query, grad_key, grad_value = grads
        return grad_query, grad_key, grad_value, None, None


def _heads(x: Tensor) -> Tensor:
    """(T, heads, D) as the kernel wants it, (1, heads, T, D); no copy."""
    return x.transpose(0, 1)[None]


def _taken(x: Tensor, own: Own) -> Tensor:
    """A block's rows of (T, heads, ...) as (S, heads, W, ...)."""
    if isinstance(own, slice):
        return x[own].transpose(0, 1)[None]
    rows = x.index_select(0, own.index_SW.flatten())
    return rows.view(*own.index_SW.shape, *x.shape[1:]).transpose(1, 2)


def _put(x: Tensor, own: Own, part: Tensor) -> None:
    """Write (S, W, heads, ...) to the rows that it belongs to."""
    if isinstance(own, slice):
        x[own] = part[0]
        return
    rows = part.flatten(0, 1)
    if own.padding_SW is not None:
        rows = rows.index_select(0, own.source_R)
    x.index_copy_(0, own.target_R, rows)


def _above(plan: AttentionPlan) -> list[tuple[slice, slice]]:
    """Each segment that has others below it: its tokens, and theirs."""
    return [
        (slice(start, start + length), slice(start + length, end))
        for (start, length), end in zip(plan.spans, plan.ends, strict=True)
        if end > start + length
    ]


def _own_blocks(plan: AttentionPlan) -> list[Own]:
    long = [i for i, (_, length) in enumerate(plan.spans) if length >= LONG]
    found: list[Own] = [slice(plan.spans[i][0], sum(plan.spans[i])) for i in long]
    short = [i for i, (_, length) in enumerate(plan.spans) if length < LONG]
    members: list[int] = []
    needed = 0
    for i in sorted(short, key=lambda i: -plan.spans[i][1]):
        pairs = plan.spans[i][1] ** 2
        if members and (len(members) + 1) * plan.spans[members[0]][1] ** 2 > WASTE * (
            needed + pairs
        ):
            found.append(_own_block(members, plan))
            members, needed = [], 0
        members.append(i)
        needed += pairs
    if members:
        found.append(_own_block(members, plan))
    return found


def _own_block(members: list[int], plan: AttentionPlan) -> Own:
    start_S = torch.tensor([plan.spans[i][0] for i in members])
    length_S = torch.tensor([plan.spans[i][1] for i in members])
    if len(members) == 1:
        return slice(int(start_S), int(start_S + length_S))
    place_W = torch.arange(int(length_S.max()))
    # Copies of a real token keep every number finite: its own keys, a log-sum that fits them.
    index_SW = start_S[:, None] + torch.minimum(place_W, length_S[:, None] - 1)
    padding_SW = place_W >= length_S[:, None]
    source_R = (~padding_SW).flatten().nonzero().squeeze(1)
    return OwnBlock(
        index_SW=index_SW,
        padding_SW=padding_SW if bool(padding_SW.any()) else None,
        source_R=source_R,
        target_R=index_SW.flatten().index_select(0, source_R),
    )
