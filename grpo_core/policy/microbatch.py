"""What goes into a forward and backward pass, and what comes of an optimizer step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from grpo_core.policy.layouts import ModelInputs

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_core.batching import Minibatch
    from grpo_core.types import LossOutput


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroBatch:
    """What one forward and backward pass is made of; flat tensors on the policy's device."""

    inputs: ModelInputs
    minibatch: Minibatch
    advantages_N: Tensor
    weights_N: Tensor
    """float64: a sum of 10^6 products of 10^-6 is not left to float32."""
    mean_weights_N: Tensor
    sampling_logprobs_N: Tensor
    old_logprobs_N: Tensor | None
    ref_logprobs_N: Tensor | None
    entropy_rank_N: Tensor | None

    def weighted(self, out: LossOutput) -> Tensor:
        """This microbatch's part of the optimizer step's loss, a scalar."""
        total = (out.loss_N * self.weights_N).sum()
        if out.token_mean_N is not None:
            total = total + (out.token_mean_N * self.mean_weights_N).sum()
        return total


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerStep:
    """What came of one optimizer step."""

    grad_norm: float
    """Before clipping."""
    learning_rate: float
    skipped: bool
    """The gradient was not finite, so the weights were left as they were."""
