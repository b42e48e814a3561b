"""Matrix products of few rows, with the weights laid out in memory as they are read fastest.

Training keeps ``(out, in)`` matrices, made for products of thousands of rows. While decoding, the
products have as many rows as there are unfinished completions, and on a CPU the layout decides
over a factor of two. A copy for the length of one request costs as much as a handful of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor
from torch.nn import functional

Layout = Literal["plain", "transposed", "packed"]

PACK_FROM = 1 << 22
"""Elements from which a matrix is packed instead of transposed. Measured on a Xeon with AVX-512 in
float32, 4 to 128 rows, in GFLOP/s plain / transposed / packed: 128 x 768: 122 / 132 / 101;
512 x 3072: 28 / 59 / 45; 512 x 32768: 12 / 22 / 35; 256 x 151936: 11 / 21 / 34."""


class Projection:
    """``x @ weight.T + bias`` of several weights at once, their outputs side by side.

    Args:
        weights: each ``(out, in)``.
        biases: one per weight, or ``None`` where there is none.
        rows: about how many rows a product will have.
        layout: ``None`` takes the one that was measured fastest for such matrices.
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor | None],
        *,
        rows: int,
        layout: Layout | None = None,
    ) -> None:
        self.layout = layout or usual_layout(weights)
        self.bias = None
        if any(bias is not None for bias in biases):
            self.bias = torch.cat(
                [
                    w.new_zeros(len(w)) if b is None else b
                    for w, b in zip(weights, biases, strict=True)
                ]
            )
        if self.layout == "transposed":
            self._weight = _side_by_side(weights)
        else:
            self._weight = weights[0] if len(weights) == 1 else torch.cat(list(weights))
            if self.layout == "packed":
                self._weight = _mkldnn()._reorder_linear_weight(self._weight, rows)

    def __call__(self, x: Tensor) -> Tensor:
        """``(rows, in)`` to ``(rows, out)``."""
        if self.layout == "packed":
            product = _mkldnn()._linear_pointwise(x, self._weight, self.bias, "none", [], "")
            return cast("Tensor", product)
        if self.layout == "plain":
            return functional.linear(x, self._weight, self.bias)
        return x @ self._weight if self.bias is None else torch.addmm(self.bias, x, self._weight)

    def added_to(self, total: Tensor, x: Tensor) -> Tensor:
        """``total`` plus the projection of ``x``."""
        if self.layout == "transposed" and self.bias is None and x.dtype == total.dtype:
            return torch.addmm(total, x, self._weight)
        return total + self(x)


def usual_layout(weights: Sequence[Tensor]) -> Layout:
    """The layout that was fastest where it was measured.

    A rule and not a timing at start: layouts round differently in the last bit, and with a timing
    two runs of one seed would part where the machine was busy for a moment.
    """
    weight = weights[0]
    if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.float64):
        return "plain"
    large = sum(w.numel() for w in weights) >= PACK_FROM
    return "packed" if large and "packed" in possible_layouts(weight) else "transposed"


def possible_layouts(weight: Tensor) -> tuple[Layout, ...]:
    """What works for such a weight here."""
    packs = (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and hasattr(_mkldnn(), "_reorder_linear_weight")
    )
    return tuple(x for x in get_args(Layout) if packs or x != "packed")


def _side_by_side(weights: Sequence[Tensor]) -> Tensor:
    """``(in, all outputs)``, each weight copied once."""
    out = weights[0].new_empty(weights[0].shape[1], sum(len(w) for w in weights))
    for part, weight in zip(out.split([len(w) for w in weights], dim=1), weights, strict=True):
        part.copy_(weight.T)
    return out


def _mkldnn() -> Any:
    # Reached from Python by the compiler's own lowering of linear layers; not a documented API,
    # hence asked for by name and only where it exists.
    return torch.ops.mkldnn
