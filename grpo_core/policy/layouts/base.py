"""What every layout of rollouts for the model has in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from grpo_core.policy.layouts.plan import AttentionPlan
    from grpo_core.types import Rollout


ENOUGH_ON_A_CPU = 1024
"""Tokens of a pass from which a further group gains no time worth its memory. Measured on one
thread: an update of the demo in passes of 4 000, 2 000, 1 000 and 500 tokens took 0.72, 0.70, 0.74
and 0.79 s; one of 29 M parameters the same in one pass of 2 000 tokens as in two."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelInputs:
    """Some rollouts, laid out for one forward pass.

    ``rows`` says which rollouts these are (indices into what the layout was given), in the order
    in which their action tokens stand in the flat ``_N`` tensors.
    """

    rows: tuple[int, ...]
    model_kwargs: dict[str, Tensor]
    """What the backbone is called with; the hidden states come back as (rows, positions, H)."""
    predict_index_N: Tensor
    """int64 into the flattened (rows * positions) hidden states: the position *before* each
    action token, whose distribution the token was drawn from."""
    target_N: Tensor
    """int64, the action tokens themselves."""
    rollout_index_N: Tensor
    """int64, which of ``rows`` each action token belongs to."""
    tokens: int
    """Token positions that the model computes, padding included."""
    attention: AttentionPlan | None = None
    """Which tokens see which, when that is not plain causal attention within a row."""

    def to(self, device: torch.device) -> ModelInputs:
        """The same on another device."""
        return ModelInputs(
            rows=self.rows,
            model_kwargs={k: v.to(device) for k, v in self.model_kwargs.items()},
            predict_index_N=self.predict_index_N.to(device),
            target_N=self.target_N.to(device),
            rollout_index_N=self.rollout_index_N.to(device),
            tokens=self.tokens,
            attention=None if self.attention is None else self.attention.to(device),
        )

    @property
    def forward_kwargs(self) -> dict[str, Any]:
        """What the model's ``forward`` is called with."""
        plan = {} if self.attention is None else {"segments": self.attention}
        return {**self.model_kwargs, **plan, "use_cache": False}


class Layout(Protocol):
    """Splits rollouts into forward passes; all layouts give the same numbers to rounding."""

    def microbatches(
        self, rollouts: Sequence[Rollout], *, tokens_per_microbatch: int
    ) -> list[ModelInputs]:
        """Every rollout with action tokens in exactly one of the results; those without never
        reach the model. At least one result, perhaps without action tokens: with data
        parallelism every rank must take part in every backward."""
