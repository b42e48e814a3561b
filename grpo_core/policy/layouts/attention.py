"""Attention over a flat batch of segments, as an attention implementation of transformers.

Everything else in a transformer works token by token, so a batch without any padding is one row
of tokens; only attention has to know which tokens see which. Segments of like size are gathered
into small dense blocks, each query with the keys of its ancestors and its own segment. Called
without a plan (sampling), it is transformers' own SDPA.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

IMPLEMENTATION = "grpo_segments"

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


@dataclass(slots=True)
class AttentionPlan:
    """Which tokens of a flat batch see which."""

    blocks: tuple[Block, ...]
    order_T: Tensor
    """Where in the concatenation of all blocks' queries each token of the batch stands."""
    windows: list[int | None] = field(default_factory=list)
    """Filled during a forward pass with the sliding window that each layer asked for."""
    masks: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    """Masks of blocks with a sliding window, made once for all layers."""

    def to(self, device: torch.device) -> AttentionPlan:
        if self.order_T.device == device:
            return self
        blocks = tuple(
            Block(
                query_index_SQ=b.query_index_SQ.to(device),
                key_index_SK=b.key_index_SK.to(device),
                visible_SQK=None if b.visible_SQK is None else b.visible_SQK.to(device),
                distance_SQK=b.distance_SQK.to(device),
            )
            for b in self.blocks
        )
        return AttentionPlan(blocks=blocks, order_T=self.order_T.to(device))

    def mask(self, index: int, window: int | None) -> Tensor | None:
        """What block ``index`` may see, with a sliding window or without."""
        block = self.blocks[index]
        if window is None:
            return block.visible_SQK
        if (index, window) not in self.masks:
            near = (block.distance_SQK >= 0) & (block.distance_SQK < window)
            if block.visible_SQK is not None:
                near &= block.visible_SQK
            # A padded query sees nothing, and a softmax over nothing is NaN, forward or backward.
            near[..., -1] |= ~near.any(-1)
            self.masks[index, window] = near
        return self.masks[index, window]


def make_plan(spans: Sequence[tuple[int, int]], parents: Sequence[int]) -> AttentionPlan:
    """Plan the attention of a flat batch.

    Args:
        spans: (start, length) of each segment in the batch; together they cover it.
        parents: index of each segment's parent, -1 for roots.
    """
    ancestors = [_ancestors(i, parents) for i in range(len(spans))]
    before = [sum(spans[a][1] for a in chain) for chain in ancestors]
    blocks, order = [], torch.empty(sum(length for _, length in spans), dtype=torch.long)
    done = 0
    for members in _blocks([length for _, length in spans], before):
        block, width = _block(members, spans, ancestors, before)
        for row, i in enumerate(members):
            start, length = spans[i]
            order[start : start + length] = done + row * width + torch.arange(length)
        done += len(members) * width
        blocks.append(block)
    return AttentionPlan(blocks=tuple(blocks), order_T=order)


def _ancestors(i: int, parents: Sequence[int]) -> list[int]:
    chain: list[int] = []
    while parents[i] >= 0:
        i = parents[i]
        chain.insert(0, i)
    return chain


def _blocks(lengths: Sequence[int], before: Sequence[int]) -> list[list[int]]:
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


def _block(
    members: Sequence[int],
    spans: Sequence[tuple[int, int]],
    ancestors: Sequence[Sequence[int]],
    before: Sequence[int],
) -> tuple[Block, int]:
    width = max(spans[i][1] for i in members)
    earlier = max(before[i] for i in members)
    # Padding points at token 0: any token will do, what comes of it is masked or dropped.
    query = torch.zeros(len(members), width, dtype=torch.long)
    key = torch.zeros(len(members), earlier + width, dtype=torch.long)
    real = torch.zeros(len(members), earlier + width, dtype=torch.bool)
    for row, i in enumerate(members):
        start, length = spans[i]
        query[row, :length] = torch.arange(start, start + length)
        chain = [torch.arange(spans[a][0], sum(spans[a])) for a in ancestors[i]]
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
    return (
        Block(query_index_SQ=query, key_index_SK=key, visible_SQK=visible, distance_SQK=distance),
        width,
    )


def segment_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    segments: AttentionPlan | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Transformers' attention signature: ``(1, heads, T, D)`` in, ``(1, T, heads, D)`` out."""
    cap = kwargs.get("softcap")
    if segments is None and cap is None:
        out, weights = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return out, weights
    if segments is None:
        # SDPA has no cap and would leave it out without a word.
        mask = None if attention_mask is None else attention_mask[:, 0]
        return _attend(query, key, value, mask, scaling, cap).transpose(1, 2), None
    window = kwargs.get("sliding_window")
    segments.windows.append(window)
    if kwargs.get("s_aux") is not None or kwargs.get("position_bias") is not None:
        raise NotImplementedError("attention sinks and position biases have no segment form")
    # (T, heads, D): rows of tokens, so that gathering copies whole contiguous runs.
    query_T, key_T, value_T = (x[0].transpose(0, 1) for x in (query, key, value))
    parts = []
    for index, block in enumerate(segments.blocks):
        q, k, v = (
            x[i].transpose(1, 2)
            for x, i in (
                (query_T, block.query_index_SQ),
                (key_T, block.key_index_SK),
                (value_T, block.key_index_SK),
            )
        )
        mask = segments.mask(index, window)
        out = _attend(q, k, v, mask, scaling, cap)
        parts.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(parts)[segments.order_T][None], None


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float | None, cap: float | None
) -> Tensor:
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


AttentionInterface.register(IMPLEMENTATION, segment_attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
