"""What stands between the head's matrix product and the distribution that is sampled from."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadTransform:
    """``softcap * tanh(scale * x / softcap) / temperature``, or ``scale * x / temperature``."""

    scale: float = 1.0
    """Cohere's ``logit_scale``, Granite's ``1 / logits_scaling``."""
    softcap: float | None = None
    """Gemma 2's ``final_logit_softcapping`` (arXiv 2408.00118)."""
    temperature: float = 1.0

    @property
    def slope(self) -> float:
        """The derivative, but for the cap's part in it."""
        return self.scale / self.temperature

    def apply_(self, logits: Tensor) -> Tensor:
        """Transform logits in place: a tile is large, and a copy of it costs as much as its use."""
        if self.softcap is None:
            factor = self.slope
        else:
            logits.mul_(self.scale / self.softcap).tanh_()
            factor = self.softcap / self.temperature
        return logits if factor == 1 else logits.mul_(factor)

    def bend(self, transformed: Tensor) -> Tensor | None:
        """The cap's part in the derivative, ``1 - tanh^2``, from the output of ``apply_``."""
        if self.softcap is None:
            return None
        return (transformed * (self.temperature / self.softcap)).square_().neg_().add_(1)
