"""The language-model head, fused: hidden states to log-prob and entropy, tile by tile.

Whole logits (tokens x vocabulary) are never in memory at once, neither forward nor backward: each
tile's logits are made, reduced and dropped, and made again in backward. Sums over the vocabulary
are in float32 at least, whatever dtype the matrix products run in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

TILE_ELEMENTS = 1 << 24
"""Logits alive at once: 64 MiB in float32, an eighth of the tile of TRL 1.16's fused head."""

KEEP_ELEMENTS = 1 << 25
"""Probabilities kept from forward to backward, 128 MiB in float32; the tiles beyond are made
again. A kept tile saves one of its four matrix products and its exponentials."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadTransform:
    """What stands between ``hidden @ weight.T`` and the distribution that tokens are drawn from:
    ``softcap * tanh(scale * x / softcap) / temperature``."""

    scale: float = 1.0
    """Cohere's ``logit_scale``, Granite's ``1 / logits_scaling``."""
    softcap: float | None = None
    """Gemma 2's ``final_logit_softcapping`` (arXiv 2408.00118)."""
    temperature: float = 1.0

    def apply_(self, logits: Tensor) -> Tensor:
        """Transform logits in place: a tile is large, and a copy of it costs as much as its use."""
        if self.softcap is None:
            factor = self.scale / self.temperature
        else:
            logits.mul_(self.scale / self.softcap).tanh_()
            factor = self.softcap / self.temperature
        return logits if factor == 1 else logits.mul_(factor)

    def backward_(self, grad: Tensor, transformed: Tensor) -> Tensor:
        """Chain rule through ``apply_``, from its output, in place."""
        if self.softcap is not None:
            grad.mul_(1 - (transformed * (self.temperature / self.softcap)).square_())
        factor = self.scale / self.temperature
        return grad if factor == 1 else grad.mul_(factor)


def token_logprobs(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    target_N: Tensor,
    transform: HeadTransform,
    *,
    entropy_gradient: bool = True,
    tile_elements: int = TILE_ELEMENTS,
    keep_elements: int = KEEP_ELEMENTS,
) -> tuple[Tensor, Tensor]:
    """Log-prob of each target and entropy of each distribution, both in nats.

    Args:
        hidden_NH: hidden states of the positions that predict the targets.
        weight_VH: the head's weight, tied or not.
        bias_V: its bias, if it has one.
        target_N: int64 token ids.
        entropy_gradient: whether the entropy will be differentiated; most losses only report it.

    Returns:
        ``(logprobs_N, entropy_N)`` in float32, or float64 when the hidden states are; both can
        be differentiated.
    """
    logprobs_N, entropy_N = _FusedHead.apply(  # type: ignore[no-untyped-call]
        hidden_NH,
        weight_VH,
        bias_V,
        target_N,
        transform,
        entropy_gradient,
        tile_elements,
        keep_elements,
    )
    return logprobs_N, entropy_N


class _FusedHead(Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        target_N: Tensor,
        transform: HeadTransform,
        entropy_gradient: bool,
        tile_elements: int,
        keep_elements: int,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V, target_N)
        ctx.transform = transform
        ctx.tile = max(1, tile_elements // weight_VH.shape[0])
        # Autocast is off inside backward: what it would have cast is decided here, once.
        ctx.gemm_dtype = _gemm_dtype(hidden_NH)
        total = _sum_dtype(hidden_NH)
        logprobs_N = hidden_NH.new_empty(len(hidden_NH), dtype=total)
        entropy_N = torch.empty_like(logprobs_N)
        ctx.kept = {}
        # A cap's derivative needs the logits and an entropy's the log-probs: those are made again.
        keeps = transform.softcap is None and not entropy_gradient and any(ctx.needs_input_grad)
        room = keep_elements if keeps else 0
        weight = weight_VH.to(ctx.gemm_dtype)
        for start in range(0, len(hidden_NH), ctx.tile):
            rows = slice(start, start + ctx.tile)
            logits = transform.apply_(_logits(hidden_NH[rows], weight, bias_V, total))
            logp = logits.log_softmax(-1)
            del logits
            p = logp.exp()
            logprobs_N[rows] = logp.gather(1, target_N[rows, None]).squeeze(1)
            entropy_N[rows] = _entropy(p, logp)
            if p.numel() <= room:
                ctx.kept[start] = p
                room -= p.numel()
        if not entropy_gradient:
            ctx.mark_non_differentiable(entropy_N)
        return logprobs_N, entropy_N

    @staticmethod
    def backward(
        ctx: Any, grad_logprobs_N: Tensor | None, grad_entropy_N: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None, None, None, None]:
        if grad_logprobs_N is None and grad_entropy_N is None:
            return (None,) * 8
        hidden_NH, weight_VH, bias_V, target_N = ctx.saved_tensors
        transform: HeadTransform = ctx.transform
        total = _sum_dtype(hidden_NH)
        weight = weight_VH.to(ctx.gemm_dtype)
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden_NH) if need_hidden else None
        grad_weight = torch.zeros_like(weight_VH, dtype=total) if need_weight else None
        grad_bias = torch.zeros_like(bias_V, dtype=total) if need_bias else None
        kept, ctx.kept = ctx.kept, {}
        for start in range(0, len(hidden_NH), ctx.tile):
            rows = slice(start, start + ctx.tile)
            targets = target_N[rows]
            grad_logprobs = None if grad_logprobs_N is None else grad_logprobs_N[rows]
            if start in kept:
                grad = _grad_logits(kept.pop(start), None, targets, grad_logprobs, None)
                grad = transform.backward_(grad, grad)
            else:
                logits = transform.apply_(_logits(hidden_NH[rows], weight, bias_V, total))
                logp = logits.log_softmax(-1)
                grad_entropy = None if grad_entropy_N is None else grad_entropy_N[rows]
                grad = _grad_logits(logp.exp(), logp, targets, grad_logprobs, grad_entropy)
                grad = transform.backward_(grad, logits)
            grad_gemm = grad.to(ctx.gemm_dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = (grad_gemm @ weight).to(grad_hidden.dtype)
            if grad_weight is not None:
                _add_product(grad_weight, grad_gemm.T, hidden_NH[rows].to(ctx.gemm_dtype))
            if grad_bias is not None:
                grad_bias += grad.sum(0)
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight_VH.dtype),
            None if grad_bias is None else grad_bias.to(bias_V.dtype),
            None,
            None,
            None,
            None,
            None,
        )


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """``total += a @ b``, without a second matrix of the weight's size where that can be."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b


def _gemm_dtype(hidden: Tensor) -> torch.dtype:
    if torch.is_autocast_enabled(hidden.device.type) and hidden.dtype != torch.float64:
        return torch.get_autocast_dtype(hidden.device.type)
    return hidden.dtype


def _sum_dtype(hidden: Tensor) -> torch.dtype:
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, total: torch.dtype) -> Tensor:
    logits = (hidden.to(weight.dtype) @ weight.T).to(total)
    return logits if bias is None else logits.add_(bias.to(total))


def _entropy(p: Tensor, logp: Tensor) -> Tensor:
    # A dot product needs no tile of its own for p * log p.
    entropy: Tensor = -torch.linalg.vecdot(p, logp)
    if entropy.isnan().any():
        # 0 * -inf: a token that a model rules out completely adds nothing.
        entropy = -torch.linalg.vecdot(p, logp.clamp(min=torch.finfo(logp.dtype).min))
    return entropy


def _grad_logits(
    p: Tensor,
    logp: Tensor | None,
    target: Tensor,
    grad_logprobs: Tensor | None,
    grad_entropy: Tensor | None,
) -> Tensor:
    """Gradient with respect to the transformed logits: ``g (1[target] - p)`` from the log-prob,
    ``-g p (log p + H)`` from the entropy; ``p`` becomes the result."""
    if grad_entropy is None:
        assert grad_logprobs is not None
        grad = p.mul_(-grad_logprobs[:, None])
    else:
        assert logp is not None
        entropy = _entropy(p, logp)
        factor = logp.clamp(min=torch.finfo(logp.dtype).min).add_(entropy[:, None])
        factor.mul_(-grad_entropy[:, None])
        if grad_logprobs is not None:
            factor.sub_(grad_logprobs[:, None])
        grad = p.mul_(factor)
    if grad_logprobs is not None:
        grad.scatter_add_(1, target[:, None], grad_logprobs[:, None])
    return grad
