"""Where each token stands among all tokens of a step by its entropy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_core.batching import RolloutBatch
    from grpo_core.trainer.run import Run


def rank_entropies(run: Run, batch: RolloutBatch, masked: Sequence[bool]) -> None:
    """Fill in ``batch.entropy_ranks``, for one more forward pass of everything; its log-probs are
    the old ones of what is trained on later.

    Args:
        masked: rollouts that take no part in the update.
    """
    counted = [i for i, leave_out in enumerate(masked) if not leave_out]
    with run.metrics.timed("entropy_ranks"):
        found = run.policy.logprobs_and_entropies([batch.rollouts[i] for i in counted])
        ranked = entropy_ranks([entropy for _, entropy in found], run.policy.gather)
    batch.entropy_ranks = [run.policy.tensor([0.0] * r.action_count) for r in batch.rollouts]
    later = set(batch.rows_trained_later)
    for row, ranks, (logprobs, _) in zip(counted, ranked, found, strict=True):
        batch.entropy_ranks[row] = ranks
        # Not those of the first minibatch: its ratio is exactly 1, and this would round it.
        if row in later:
            batch.old_logprobs[row] = logprobs


def entropy_ranks(
    entropies: Sequence[Tensor], gather: Callable[[list[Any]], list[Any]]
) -> list[Tensor]:
    """The rank of each token's entropy among those of all ranks, from 0 (lowest) to 1.

    With ``n`` tokens it is ``(tokens of no more entropy - 1) / (n - 1)``, so that ``rank >= q``
    says the same as ``entropy >= quantile(entropies, q)`` with linear interpolation, ties
    included.

    Args:
        entropies: ``(action_count,)`` per rollout of this rank.
        gather: concatenates a list over all ranks.
    """
    mine = torch.cat([*entropies, torch.zeros(0)])
    # Rounded once, before they are compared: what is equal here is equal on every rank.
    everyone = torch.cat(gather([mine.double().cpu()])).sort().values
    below = torch.searchsorted(everyone, mine.double().cpu(), right=True) - 1
    ranks = below.double() / max(1, len(everyone) - 1)
    if len(everyone) == 1:
        ranks = torch.ones_like(ranks)
    return [part.to(mine.device) for part in ranks.split([len(e) for e in entropies])]
