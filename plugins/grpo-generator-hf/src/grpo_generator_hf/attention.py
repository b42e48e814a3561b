"""The arithmetic of attention while decoding.

Shapes: B rows, H query heads, K key-value heads, R query heads per key-value head (H = K * R),
D head size, T positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """What an architecture does differently in a layer's attention."""

    scaling: float
    softcap: float | None = None
    window: int | None = None
    """Positions that a token sees, itself included; ``None`` sees all."""


def rounded(x: Tensor) -> Tensor:
    """What the model's own attention would be given: autocast's dtype, where that is on."""
    device = x.device.type
    if x.dtype != torch.float32 or not torch.is_autocast_enabled(device):
        return x
    return x.to(torch.get_autocast_dtype(device))


def scores(query: Tensor, key: Tensor, variant: Variant) -> Tensor:
    """Attention logits, capped as Gemma 2 does (arXiv 2408.00118).

    In float32 at least, also under autocast: 8 bits of a logit of 50 are an error of 0.2, and fused
    kernels do not round them either.
    """
    with torch.autocast(query.device.type, enabled=False):
        if query.dtype != torch.float64:
            query, key = query.float(), key.float()
        found = (query * variant.scaling) @ key.mT
    cap = variant.softcap
    return found if cap is None else found.div_(cap).tanh_().mul_(cap)


def weigh(logits: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of the values, and the logarithm of the mass that it was taken over."""
    top = logits.amax(-1, keepdim=True)
    weight = logits.sub_(top).exp_()
    total = weight.sum(-1, keepdim=True)
    out = (weight.to(value.dtype) @ value).to(total.dtype).div_(total).to(value.dtype)
    return out, total.log_().add_(top)


def additive(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(
        hidden, -torch.inf
    )


def causal(query: Tensor, key: Tensor, value: Tensor, variant: Variant) -> Tensor:
    """Attention within one prompt; ``(1, H, T, D)`` each."""
    length, window = query.shape[2], variant.window
    windowed = window is not None and window < length
    grouped = query.shape[1] != key.shape[1]
    if variant.softcap is None and not windowed:
        return functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=variant.scaling, enable_gqa=grouped
        )
    one = torch.ones(length, length, dtype=torch.bool, device=query.device)
    visible = one.tril() if window is None else one.tril().triu(1 - window)
    if variant.softcap is None:
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask=visible, scale=variant.scaling, enable_gqa=grouped
        )
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    found = scores(query, key, variant).masked_fill_(~visible, -torch.inf)
    return found.softmax(-1).to(value.dtype) @ value
