"""Norms and gated layers that keep less for backward, in place of those of stock models.

Written in single operations, an RMS norm keeps three tensors of its input's size and a gated layer
four of its width, and each passing result is memory that a CPU has to be given first: page faults
cost more than the arithmetic (measured: 20 to 25 % of an update). Which layers can be replaced is
found by trying: outputs and gradients must be those of the layer itself.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional

CHUNK = 1 << 16
"""Elements worked on at a time: 256 KiB in float32, so that passing results stay in the cache."""

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05}
"""Largest difference that is rounding, as a share of the largest entry. Other dtypes are left
alone: in float64 stock norms compute in float32, and a better one would be another model."""


def fuse_layers(model: nn.Module) -> int:
    """Give the layers of ``model`` that are known here their leaner forward; how many."""
    return sum(_fuse(module) for module in model.modules())


def _fuse(module: nn.Module) -> bool:
    forwards: tuple[Callable[[Any, Tensor], Tensor], ...]
    if _is_norm(module):
        forwards, width = (_norm_forward, _norm_of_one_forward), cast("Any", module).weight.numel()
    elif _is_gated(module):
        forwards, width = (_gated_forward,), cast("Any", module).gate_proj.in_features
    else:
        return False
    if len(signature(type(module).forward).parameters) != 2:
        # A norm that also takes a gate, say: the trial would only try it without.
        return False
    parameter = next(module.parameters())
    if parameter.dtype not in TOLERANCE or parameter.device.type != "cpu":
        return False
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3, width, generator=draw).to(parameter.dtype)
    try:
        wanted = _outcome(module, type(module).forward, x)
    except (TypeError, RuntimeError, ValueError):
        # It wants other inputs: not one of these layers, whatever its parts are called.
        return False
    for forward in forwards:
        found = _outcome(module, forward, x)
        if len(found) == len(wanted) and all(map(_agree, found, wanted)):
            # A bound method, not a closure: a deep copy of the model must use its own weights.
            module.forward = MethodType(forward, module)
            return True
    return False


def _is_norm(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    alone = len(list(module.parameters())) == 1 and not list(module.children())
    return alone and weight is not None and weight.dim() == 1 and _eps(module) is not None


def _is_gated(module: nn.Module) -> bool:
    names = {name for name, _ in module.named_children()}
    return (
        names >= {"gate_proj", "up_proj", "down_proj"}
        and next(module.parameters(), None) is not None
        and hasattr(module.get_submodule("gate_proj"), "in_features")
    )


def _eps(module: nn.Module) -> float | None:
    return getattr(module, "variance_epsilon", None) or getattr(module, "eps", None)


def _outcome(module: nn.Module, forward: Callable[..., Any], x: Tensor) -> list[Tensor]:
    """Output, and the gradients of input and parameters."""
    with torch.enable_grad():
        x = x.clone().requires_grad_()
        out: Tensor = forward(module, x)
        parameters = [p for p in module.parameters() if p.requires_grad]
        weights = torch.arange(out.numel(), dtype=torch.float32).sin().view_as(out)
        return [out.detach(), *torch.autograd.grad((out.float() * weights).sum(), [x, *parameters])]


def _agree(a: Tensor, b: Tensor) -> bool:
    bound = TOLERANCE[b.dtype] * float(b.abs().max())
    return a.shape == b.shape and float((a - b).abs().max()) <= bound


# -- norms ------------------------------------------------------------------------------------


def _norm_forward(self: Any, hidden_states: Tensor) -> Tensor:
    if hidden_states.dtype != self.weight.dtype:
        return cast("Tensor", type(self).forward(self, hidden_states))
    return rms_norm(hidden_states, self.weight, cast("float", _eps(self)))


def _norm_of_one_forward(self: Any, x: Tensor) -> Tensor:
    """Gemma's: the weight counts from one."""
    if x.dtype != self.weight.dtype:
        return cast("Tensor", type(self).forward(self, x))
    return rms_norm(x, 1 + self.weight, cast("float", _eps(self)))


def rms_norm(x: Tensor, weight_H: Tensor, eps: float) -> Tensor:
    """``weight * x / sqrt(mean(x^2) + eps)`` over the last dimension (arXiv 1910.07467), summed in
    float32 at least; keeps its input and one number per row."""
    out: Tensor = _RmsNorm.apply(x, weight_H, eps)  # type: ignore[no-untyped-call]
    return out


class _RmsNorm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_H: Tensor, eps: float) -> Tensor:
        total = torch.float64 if x.dtype == torch.float64 else torch.float32
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=total)
        inverse = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight_H, inverse)
        normed: Tensor = x * inverse
        return normed.to(x.dtype).mul_(weight_H)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight_H, inverse = ctx.saved_tensors
        width = x.shape[-1]
        total = inverse.dtype
        weight = weight_H.to(total)
        # The layout of the input, so that rows are runs of memory in all three.
        grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        grad_weight = torch.zeros(width, dtype=total, device=x.device)
        rows = max(1, CHUNK // width)
        for x_, g_, i_, out_ in zip(
            *(t.reshape(-1, t.shape[-1]).split(rows) for t in (x, grad, inverse, grad_x)),
            strict=True,
        ):
            normed, g = x_ * i_, g_.to(total)
            product = normed * g
            grad_weight += product.sum(0)
            share = torch.mv(product, weight).div_(width)[:, None]
            normed.mul_(share)
            torch.mul(g, weight, out=product).sub_(normed)
            out_.copy_(product.mul_(i_))
        return grad_x, grad_weight.to(weight_H.dtype) if ctx.needs_input_grad[1] else None, None


# -- gated layers -----------------------------------------------------------------------------


def _gated_forward(self: Any, x: Tensor) -> Tensor:
    return gated(self.gate_proj(x), self.up_proj(x), self.down_proj)


def gated(gate: Tensor, up: Tensor, down: Callable[[Tensor], Tensor]) -> Tensor:
    """``down(silu(gate) * up)`` (SwiGLU, arXiv 2002.05202); keeps gate and up alone, and makes the
    product again when the gradient of ``down`` needs it."""
    product: Tensor = _SiluProduct.apply(gate, up)  # type: ignore[no-untyped-call]
    if not product.requires_grad:
        return down(product)
    where, size = product.data_ptr(), product.numel()
    gate_, up_ = gate.detach(), up.detach()

    def pack(saved: Tensor) -> Tensor | torch.Size:
        same = saved.data_ptr() == where and saved.numel() == size and saved.is_contiguous()
        return saved.shape if same and saved.dtype == gate_.dtype else saved

    def unpack(packed: Tensor | torch.Size) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        return functional.silu(gate_).mul_(up_).view(packed)

    with saved_tensors_hooks(pack, unpack):
        return down(product)


class _SiluProduct(Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return functional.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        grad_gate = grad * up
        torch.ops.aten.silu_backward.grad_input(grad_gate, gate, grad_input=grad_gate)
        return grad_gate, functional.silu(gate).mul_(grad)
