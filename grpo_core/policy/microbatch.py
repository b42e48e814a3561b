"""What goes into a forward and backward pass, and what comes of an optimizer step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch

from grpo_core.policy.layouts import ModelInputs

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_core.batching import Minibatch
    from grpo_core.types import LossOutput, Rollout


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
    old_values_N: Tensor | None
    value_targets_N: Tensor | None
    expert_shares_E: Tensor | None = None
    """How the tokens of the optimizer step were spread over experts, see ``routing``; ``None``
    where no term needs it, and where this microbatch is the whole step."""

    def weighted(self, out: LossOutput) -> Tensor:
        """This microbatch's part of the optimizer step's loss, a scalar."""
        total = (out.loss_N * self.weights_N).sum()
        if out.token_mean_N is not None:
            total = total + (out.token_mean_N * self.mean_weights_N).sum()
        return total


def make_microbatch(
    minibatch: Minibatch,
    inputs: ModelInputs,
    tensor: Callable[[Sequence[float]], Tensor],
    expert_shares_E: Tensor | None = None,
) -> MicroBatch:
    """What ``inputs`` are trained on, gathered from the batch.

    Args:
        inputs: some rollouts of the minibatch, on the policy's device.
        tensor: makes a float64 tensor there.
    """
    batch = minibatch.batch
    device = inputs.predict_index_N.device
    rows = [minibatch.rows[i] for i in inputs.rows]
    index_N = inputs.rollout_index_N
    sampled = [x for i in rows for x in batch.rollouts[i].sampling_logprobs]
    old = [batch.old_logprobs[i] for i in rows if batch.rollouts[i].action_count]
    known = bool(old) and all(x is not None for x in old)
    here = list(inputs.rows)
    weights_N = minibatch.weights_B[here].to(device)[index_N]
    # A masked rollout that is here only so that this rank takes part: nobody may count it.
    n = len(weights_N) if weights_N.any() else 0

    def flat(known: Sequence[Tensor] | None) -> Tensor | None:
        return None if known is None else torch.cat([known[i] for i in rows]).to(device)[:n]

    return MicroBatch(
        inputs=inputs,
        minibatch=minibatch,
        advantages_N=torch.cat([batch.advantages[i] for i in rows]).to(device)[:n],
        weights_N=weights_N[:n],
        mean_weights_N=minibatch.mean_weights_B[here].to(device)[index_N][:n],
        sampling_logprobs_N=tensor(sampled)[:n],
        old_logprobs_N=torch.cat(cast("list[Tensor]", old))[:n] if known else None,
        ref_logprobs_N=flat(batch.ref_logprobs),
        entropy_rank_N=flat(batch.entropy_ranks),
        old_values_N=flat(batch.old_values),
        value_targets_N=flat(batch.value_targets),
        expert_shares_E=expert_shares_E,
    )


def outputs_per_rollout(
    module: Callable[[ModelInputs], Sequence[Tensor]],
    rollouts: Sequence[Rollout],
    parts: Iterable[ModelInputs],
    device: torch.device,
) -> list[tuple[Tensor, ...]]:
    """What a policy module says of each rollout's action tokens, one ``(action_count,)`` tensor
    per output; ``parts`` are all the rollouts, laid out."""
    # Of a rollout without action tokens there is nothing of anything, however many outputs.
    nothing = torch.zeros(0, device=device)
    found: list[tuple[Tensor, ...]] = [(nothing,) * 3 for _ in rollouts]
    for inputs in parts:
        outputs = module(inputs.to(device))
        counts = [rollouts[i].action_count for i in inputs.rows]
        if sum(counts):
            split = zip(*(x_N.split(counts) for x_N in outputs), strict=True)
            for row, own in zip(inputs.rows, split, strict=True):
                found[row] = own
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerStep:
    """What came of one optimizer step."""

    grad_norm: float
    """Before clipping."""
    learning_rate: float
    skipped: bool
    """The gradient was not finite, so the weights were left as they were."""
