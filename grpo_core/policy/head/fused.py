"""Hidden states to log-prob and entropy, tile by tile over tokens and vocabulary.

Whole logits are never in memory, neither forward nor backward: a tile's logits are made, reduced
and overwritten, and made again in backward, in two buffers that are used for all tiles. Sums are
in float32 at least, whatever dtype the matrix products run in.

Where only the hidden states need a gradient (an adapter is trained, the head is frozen), nothing
is made again: the gradient of a log-prob with respect to its hidden state is ``weight[target] -
E_p[weight]``, and the expectation is gathered in forward while the tile is there.

Shapes: N tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from grpo_core.policy.head.tiles import TileFunctions, tile_functions
from grpo_core.policy.head.transform import HeadTransform

CPU_TILE = 1024
"""Tokens and words of a tile: 4 MiB in float32, so that its passes run in the cache. Measured from
256 to 2048 at vocabularies of 8 k to 152 k: smaller ones slow the matrix products by up to a
quarter, larger ones change little and take more memory."""

GPU_TILE = 4096
"""64 MiB in float32: enough work for one matrix product; not measured yet."""


def token_logprobs(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    target_N: Tensor,
    transform: HeadTransform,
    *,
    entropy_gradient: bool = True,
    tile: int | None = None,
    functions: TileFunctions | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-prob of each target and entropy of each distribution, both in nats.

    Args:
        hidden_NH: hidden states of the positions that predict the targets.
        weight_VH: the head's weight, tied or not.
        bias_V: its bias, if it has one.
        target_N: int64 token ids.
        entropy_gradient: whether the entropy will be differentiated; most losses only report it.
        tile: tokens, and words of the vocabulary, computed at once; what suits the device if None.
        functions: how a tile is computed; what suits the device if None.

    Returns:
        ``(logprobs_N, entropy_N)`` in float32, or float64 when the hidden states are; both can
        be differentiated once.

    Raises:
        IndexError: a target is not in the vocabulary; on a GPU its log-prob is NaN instead.
    """
    device = hidden_NH.device.type
    if device == "cpu" and ((target_N < 0) | (target_N >= len(weight_VH))).any():
        raise IndexError(
            f"token ids from {int(target_N.min())} to {int(target_N.max())}, but the head has "
            f"{len(weight_VH)} words"
        )
    parameters = [weight_VH] if bias_V is None else [weight_VH, bias_V]
    # Asked here, because inside a Function autograd looks switched off.
    ahead = (
        torch.is_grad_enabled()
        and hidden_NH.requires_grad
        and not any(p.requires_grad for p in parameters)
        and not entropy_gradient
        and transform.softcap is None
    )
    logprobs_N, entropy_N = _FusedHead.apply(  # type: ignore[no-untyped-call]
        hidden_NH,
        weight_VH,
        bias_V,
        target_N,
        transform,
        entropy_gradient,
        ahead,
        tile or (CPU_TILE if device == "cpu" else GPU_TILE),
        functions or tile_functions(device),
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
        ahead: bool,
        tile: int,
        functions: TileFunctions,
    ) -> tuple[Tensor, Tensor]:
        # Autocast is off inside backward: what it would have cast is decided here, once.
        sweep = _Sweep(
            tile=tile, gemm_dtype=_gemm_dtype(hidden_NH), total_dtype=_total_dtype(hidden_NH)
        )
        sums_4N = hidden_NH.new_zeros(4, len(hidden_NH), dtype=sweep.total_dtype)
        # Finite, so that -inf less it is -inf.
        sums_4N[0] = torch.finfo(sweep.total_dtype).min
        # A target that no tile holds stays NaN, where a GPU cannot be asked without waiting.
        sums_4N[3] = torch.nan
        expected_NH = torch.zeros_like(hidden_NH, dtype=sweep.total_dtype) if ahead else None
        for part in sweep.tiles(hidden_NH, weight_VH, bias_V):
            e, shrink = functions.absorb(
                part.logits_TW,
                part.scratch_TW,
                target_N[part.rows] - part.first_word,
                *sums_4N[:, part.rows],
                transform,
            )
            if expected_NH is not None:
                expected_TH = expected_NH[part.rows].mul_(shrink[:, None])
                _add_product(expected_TH, e, part.weight_WH)
        top_N, mass_N, moment_N, target_logit_N = sums_4N
        log_mass_N = mass_N.log()
        logprobs_N = target_logit_N - top_N - log_mass_N
        entropy_N = log_mass_N - moment_N / mass_N
        if expected_NH is not None:
            ctx.save_for_backward(
                (weight_VH[target_N] - expected_NH.div_(mass_N[:, None])).mul_(transform.slope)
            )
        else:
            logsumexp_N = top_N + log_mass_N
            ctx.save_for_backward(hidden_NH, weight_VH, bias_V, target_N, logsumexp_N, entropy_N)
        ctx.ahead, ctx.transform, ctx.functions, ctx.sweep = ahead, transform, functions, sweep
        ctx.hidden_dtype = hidden_NH.dtype
        ctx.set_materialize_grads(False)
        if not entropy_gradient:
            ctx.mark_non_differentiable(entropy_N)
        return logprobs_N, entropy_N

    @staticmethod
    def backward(
        ctx: Any, grad_logprobs_N: Tensor | None, grad_entropy_N: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        if grad_logprobs_N is None and grad_entropy_N is None:
            return (None,) * 9
        if ctx.ahead:
            assert grad_logprobs_N is not None
            (slope_NH,) = ctx.saved_tensors
            grad_hidden = (slope_NH * grad_logprobs_N[:, None]).to(ctx.hidden_dtype)
            return (grad_hidden, *(None,) * 8)
        return (*_recompute(ctx, grad_logprobs_N, grad_entropy_N), *(None,) * 6)


def _recompute(
    ctx: Any, grad_logprobs_N: Tensor | None, grad_entropy_N: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of hidden states, weight and bias, from logits that are made again.

    With ``x`` the logits, ``d log p[target] / dx = onehot - p`` and ``dH / dx = -p (log p + H)``.
    The factor that a row has for all its words multiplies the hidden states and the result, which
    are smaller than the logits.
    """
    hidden_NH, weight_VH, bias_V, target_N, logsumexp_N, entropy_N = ctx.saved_tensors
    sweep: _Sweep = ctx.sweep
    total = sweep.total_dtype
    need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
    grad_hidden = torch.zeros_like(hidden_NH, dtype=total) if need_hidden else None
    grad_weight = torch.zeros_like(weight_VH, dtype=total) if need_weight else None
    grad_bias = torch.zeros_like(bias_V, dtype=total) if need_bias else None
    row_N = torch.full_like(entropy_N, -ctx.transform.slope)
    at_target_N, offset_N = torch.ones_like(entropy_N), None
    if grad_entropy_N is not None:
        at_target_N = torch.zeros_like(entropy_N) if grad_logprobs_N is None else grad_logprobs_N
        offset_N = at_target_N + grad_entropy_N * entropy_N
    elif grad_logprobs_N is not None:
        row_N *= grad_logprobs_N
    scaled_NH = (hidden_NH * row_N[:, None]).to(sweep.gemm_dtype) if need_weight else None
    for part in sweep.tiles(hidden_NH, weight_VH, bias_V):
        rows = part.rows
        words = slice(part.first_word, part.first_word + len(part.weight_WH))
        descent_TW = ctx.functions.descend(
            part.logits_TW,
            part.scratch_TW,
            target_N[rows] - part.first_word,
            logsumexp_N[rows],
            at_target_N[rows],
            None if grad_entropy_N is None else grad_entropy_N[rows],
            None if offset_N is None else offset_N[rows],
            ctx.transform,
        )
        if grad_hidden is not None:
            _add_product(grad_hidden[rows], descent_TW, part.weight_WH)
        if grad_weight is not None and scaled_NH is not None:
            _add_product(grad_weight[words], descent_TW.T, scaled_NH[rows])
        if grad_bias is not None:
            grad_bias[words] += row_N[rows] @ descent_TW
    return (
        None if grad_hidden is None else grad_hidden.mul_(row_N[:, None]).to(hidden_NH.dtype),
        None if grad_weight is None else grad_weight.to(weight_VH.dtype),
        None if grad_bias is None else grad_bias.to(bias_V.dtype),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tile:
    rows: slice
    first_word: int
    weight_WH: Tensor
    logits_TW: Tensor
    """As they leave the matrix product and the bias."""
    scratch_TW: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sweep:
    """Goes over all tiles; words outside, so that each slice of the weight is read (and cast)
    once."""

    tile: int
    gemm_dtype: torch.dtype
    total_dtype: torch.dtype

    def tiles(self, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None) -> Iterator[_Tile]:
        """Each tile is overwritten by the next: fresh ones took a third of the head's time in page
        faults."""
        hidden_NH = hidden_NH.to(self.gemm_dtype)
        size = min(self.tile, len(hidden_NH)) * min(self.tile, len(weight_VH))
        logits, scratch = hidden_NH.new_empty(2, size, dtype=self.total_dtype)
        product = logits
        if self.gemm_dtype != self.total_dtype:
            product = hidden_NH.new_empty(size)
        for first in range(0, len(weight_VH), self.tile):
            words = slice(first, first + self.tile)
            weight_WH = weight_VH[words].to(self.gemm_dtype)
            for start in range(0, len(hidden_NH), self.tile):
                rows = slice(start, start + self.tile)
                shape = len(hidden_NH[rows]), len(weight_WH)
                product_TW = product[: shape[0] * shape[1]].view(shape)
                logits_TW, scratch_TW = (
                    x[: product_TW.numel()].view(shape) for x in (logits, scratch)
                )
                torch.mm(hidden_NH[rows], weight_WH.T, out=product_TW)
                if product is not logits:
                    logits_TW.copy_(product_TW)
                if bias_V is not None:
                    logits_TW += bias_V[words]
                yield _Tile(
                    rows=rows,
                    first_word=first,
                    weight_WH=weight_WH,
                    logits_TW=logits_TW,
                    scratch_TW=scratch_TW,
                )


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """``total += a @ b``, multiplied in the dtype of ``b``; in place where that is the total's."""
    if total.dtype == b.dtype:
        total.addmm_(a, b)
    else:
        total += a.to(b.dtype) @ b


def _gemm_dtype(hidden: Tensor) -> torch.dtype:
    if torch.is_autocast_enabled(hidden.device.type) and hidden.dtype != torch.float64:
        return torch.get_autocast_dtype(hidden.device.type)
    return hidden.dtype


def _total_dtype(hidden: Tensor) -> torch.dtype:
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32
