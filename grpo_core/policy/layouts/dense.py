"""Segment attention in dense blocks with masks, for any device, sliding windows and soft caps.

Segments of like size are gathered into blocks, each query with the keys of its ancestors and its
own segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from grpo_core.policy.layouts.plan import AttentionPlan

WASTE = 1.25
"""A block may hold this many times the query-key pairs that its segments need."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Segments whose attention is computed together; ``_S`` segments, ``_Q`` queries, ``_K`` keys.

    Keys are the ancestors' tokens, then the segment's own, padded in front; queries are padded
    at the end.
    """

    query_index_SQ: Tensor
    key_index_SK: Tensor
    visible_SQK: Tensor | None
    """bool; ``None`` where plain causal attention does, for roots."""
    distance_SQK: Tensor
    """int32, how many positions a key lies before a query."""

    def mask(self, window: int | None) -> Tensor | None:
        """What the block may see, with a sliding window or without."""
        if window is None:
            return self.visible_SQK
        near = (self.distance_SQK >= 0) & (self.distance_SQK < window)
        if self.visible_SQK is not None:
            near &= self.visible_SQK
        # A padded query sees nothing, and a softmax over nothing is NaN, forward or backward.
        near[..., -1] |= ~near.any(-1)
        return near


@dataclass(frozen=True, kw_only=True, slots=True)
class Blocks:
    """All blocks of a plan."""

    blocks: tuple[Block, ...]
    order_T: Tensor
    """Where in the concatenation of all blocks' queries each token of the batch stands."""


def dense_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: AttentionPlan,
    *,
    scaling: float | None,
    window: int | None,
    cap: float | None,
) -> Tensor:
    """``(T, heads, D)`` in and out: rows of tokens, so that gathering copies contiguous runs."""
    if "dense" not in plan.cache:
        plan.cache["dense"] = _make(plan)
    made: Blocks = plan.cache["dense"]
    parts = []
    for index, block in enumerate(made.blocks):
        if ("mask", index, window) not in plan.cache:
            plan.cache["mask", index, window] = block.mask(window)
        q, k, v = (
            x[i].transpose(1, 2)
            for x, i in (
                (query, block.query_index_SQ),
                (key, block.key_index_SK),
                (value, block.key_index_SK),
            )
        )
        out = attend(q, k, v, plan.cache["mask", index, window], scaling, cap)
        parts.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(parts).index_select(0, made.order_T)


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float | None, cap: float | None
) -> Tensor:
    """Attention of ``(S, heads, Q, D)`` under a mask ``(S, Q, K)``; causal without one."""
    repeats = q.shape[1] // k.shape[1]
    if repeats > 1:
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    mask = None if mask is None else mask[:, None]
    if cap is None:
        return functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling
        )
    # Gemma 2's cap on attention logits (arXiv 2408.00118); no fused kernel has it.
    scores = q @ k.mT * (scaling if scaling is not None else q.shape[-1] ** -0.5)
    scores = torch.tanh(scores / cap) * cap
    if mask is None:
        later = k.shape[-2] - q.shape[-2]
        mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril(later)
    return scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v


def _make(plan: AttentionPlan) -> Blocks:
    blocks, order = [], torch.empty(plan.tokens, dtype=torch.long)
    done = 0
    for members in _members([length for _, length in plan.spans], plan.before):
        block, width = _block(members, plan)
        for row, i in enumerate(members):
            start, length = plan.spans[i]
            order[start : start + length] = done + row * width + torch.arange(length)
        done += len(members) * width
        blocks.append(block)
    return Blocks(blocks=tuple(blocks), order_T=order.to(plan.device))


def _members(lengths: Sequence[int], before: Sequence[int]) -> list[list[int]]:
    """Group segments of like size, roots apart from the rest: they need no mask."""
    order = sorted(range(len(lengths)), key=lambda i: (before[i] > 0, -lengths[i], -before[i]))
    blocks: list[list[int]] = []
    needed = queries = earlier = 0
    for i in order:
        pairs = lengths[i] * (before[i] + lengths[i])
        if blocks and (before[blocks[-1][0]] > 0) == (before[i] > 0):
            most = max(earlier, before[i])
            padded = (len(blocks[-1]) + 1) * queries * (most + queries)
            if padded <= WASTE * (needed + pairs):
                blocks[-1].append(i)
                needed, earlier = needed + pairs, most
                continue
        blocks.append([i])
        needed, queries, earlier = pairs, lengths[i], before[i]
    return blocks


def _block(members: Sequence[int], plan: AttentionPlan) -> tuple[Block, int]:
    spans, before = plan.spans, plan.before
    width = max(spans[i][1] for i in members)
    earlier = max(before[i] for i in members)
    # Padding points at token 0: any token will do, what comes of it is masked or dropped.
    query = torch.zeros(len(members), width, dtype=torch.long)
    key = torch.zeros(len(members), earlier + width, dtype=torch.long)
    real = torch.zeros(len(members), earlier + width, dtype=torch.bool)
    for row, i in enumerate(members):
        start, length = spans[i]
        query[row, :length] = torch.arange(start, start + length)
        chain = [torch.arange(spans[a][0], sum(spans[a])) for a in plan.ancestors[i]]
        if chain:
            key[row, earlier - before[i] : earlier] = torch.cat(chain)
        key[row, earlier : earlier + length] = torch.arange(start, start + length)
        real[row, earlier - before[i] : earlier + length] = True
    distance = (
        torch.arange(width, dtype=torch.int32)[:, None]
        + earlier
        - torch.arange(earlier + width, dtype=torch.int32)
    ).expand(len(members), -1, -1)
    visible = None
    if earlier:
        visible = real[:, None, :] & (distance >= 0)
        visible[..., -1] |= ~visible.any(-1)
        visible = visible.to(plan.device)
    block = Block(
        query_index_SQ=query.to(plan.device),
        key_index_SK=key.to(plan.device),
        visible_SQK=visible,
        distance_SQK=distance.to(plan.device),
    )
    return block, width
