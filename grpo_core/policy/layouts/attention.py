"""Attention over a flat batch of segments, as an attention implementation of transformers.

Everything else in a transformer works token by token, so a batch without any padding is one row
of tokens; only attention has to know which tokens see which. Called without a plan (sampling), it
is transformers' own SDPA.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from grpo_core.policy.layouts import inplace
from grpo_core.policy.layouts.dense import attend, dense_attention
from grpo_core.policy.layouts.flex import fused_attention
from grpo_core.policy.layouts.plan import AttentionPlan

IMPLEMENTATION = "grpo_segments"
FUSED = "grpo_segments_fused"
"""The same by FlexAttention."""


def segment_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    segments: AttentionPlan | None = None,
    *,
    fused: bool = False,
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
        return attend(query, key, value, mask, scaling, cap).transpose(1, 2), None
    window = kwargs.get("sliding_window")
    segments.windows.append(window)
    if kwargs.get("s_aux") is not None or kwargs.get("position_bias") is not None:
        raise NotImplementedError("attention sinks and position biases have no segment form")
    if fused:
        out = fused_attention(query, key, value, segments, scaling=scaling, window=window, cap=cap)
        return out, None
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    if cap is None and inplace.applies(q, v, window, segments):
        return inplace.inplace_attention(q, k, v, segments, scaling)[None], None
    out = dense_attention(q, k, v, segments, scaling=scaling, window=window, cap=cap)
    return out[None], None


AttentionInterface.register(IMPLEMENTATION, segment_attention)
AttentionInterface.register(FUSED, partial(segment_attention, fused=True))
for _name in (IMPLEMENTATION, FUSED):
    AttentionMaskInterface.register(_name, sdpa_mask)
