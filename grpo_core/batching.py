"""One rollout batch, several minibatches and passes: who is trained on, when, at what weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from grpo_core.aggregation import token_weights

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_core.types import Aggregation, Rollout

SumOverRanks = Callable[[list[int]], list[int]]


@dataclass(kw_only=True)
class RolloutBatch:
    """The rollouts of a step on this rank with all that the update needs to know of them."""

    rollouts: Sequence[Rollout]
    advantages: Sequence[Tensor]
    """float64 of shape ``(action_count,)``, one tensor per rollout."""
    ref_logprobs: Sequence[Tensor] | None
    """``(action_count,)`` per rollout; ``None`` when no term needs a reference."""
    plan: Sequence[tuple[int, ...]]
    """The rows of each optimizer step, in order, over all passes."""
    weights: Sequence[StepWeights]
    """Of each entry of ``plan``."""
    contributes: Sequence[bool] = ()
    """Whether a rollout's gradient can differ from 0; the others never reach the model. Empty: all
    do."""
    entropy_ranks: list[Tensor] | None = None
    """``(action_count,)`` per rollout, see ``ActionTokens.entropy_rank_N``; ``None`` when no term
    needs them."""
    old_values: Sequence[Tensor] | None = None
    """Of the value head before the update, ``(action_count,)`` per rollout, and what it shall
    learn; ``None`` without one."""
    value_targets: Sequence[Tensor] | None = None
    sampler_differs: bool = False
    """As ``ActionTokens.sampler_differs``."""
    old_logprobs: list[Tensor | None] = field(default_factory=list)
    """Log-probs under the policy as it was before the first optimizer step; ``None`` while they
    are not known yet. Those of the first minibatch are known for free, from its own forward."""

    def __post_init__(self) -> None:
        self.old_logprobs = self.old_logprobs or [None] * len(self.rollouts)

    def minibatches(self) -> Iterator[Minibatch]:
        """One per optimizer step."""
        for position, (rows, weights) in enumerate(zip(self.plan, self.weights, strict=True)):
            kept = self._kept(rows)
            yield Minibatch(
                batch=self,
                rows=tuple(rows[k] for k in kept),
                weights_B=weights.loss_B[kept],
                mean_weights_B=weights.mean_B[kept],
                first=position == 0,
            )

    @property
    def rows_trained_later(self) -> list[int]:
        """Rollouts that are first trained on when the policy has already moved."""
        first = set(self.plan[0])
        later = sorted({row for rows in self.plan[1:] for row in rows} - first)
        return [later[k] for k in self._kept(later)]

    def _kept(self, rows: Sequence[int]) -> list[int]:
        """Positions in ``rows`` of what is trained on.

        At least the shortest one: without any gradient AdamW would not even apply its momentum,
        and with data parallelism the other ranks would wait for this one.
        """
        kept = [k for k, row in enumerate(rows) if not self.contributes or self.contributes[row]]
        if kept or not rows:
            return kept
        return [min(range(len(rows)), key=lambda k: len(self.rollouts[rows[k]].token_ids))]


@dataclass(frozen=True, kw_only=True, slots=True)
class Minibatch:
    """What one optimizer step is made of."""

    batch: RolloutBatch
    rows: tuple[int, ...]
    """Indices into ``batch.rollouts``."""
    weights_B: Tensor
    """float64, the weight of every action token of each row."""
    mean_weights_B: Tensor
    """float64, the same for what is averaged over all tokens whatever the aggregation."""
    first: bool
    """The policy has not moved since these rollouts were sampled."""

    @property
    def rollouts(self) -> list[Rollout]:
        return [self.batch.rollouts[i] for i in self.rows]


def plan_minibatches(
    groups: Sequence[int], *, minibatches: int, passes: int, seed: tuple[int, ...]
) -> list[tuple[int, ...]]:
    """Deal whole groups to optimizer steps, in another order for every pass.

    Args:
        groups: the group of each rollout on this rank.
        minibatches: optimizer steps per pass; divides the number of groups.
        passes: passes over the batch.
        seed: what the order depends on, ``(seed, step, rank)``.

    Returns:
        ``passes * minibatches`` tuples of row indices.
    """
    rows_of: dict[int, list[int]] = {}
    for row, group in enumerate(groups):
        rows_of.setdefault(group, []).append(row)
    names = list(rows_of)
    size = len(names) // minibatches
    plan = []
    for current in range(passes):
        order = permutation(len(names), (*seed, current))
        for start in range(0, size * minibatches, size):
            chosen = sorted(order[start : start + size])
            plan.append(tuple(row for i in chosen for row in rows_of[names[i]]))
    return plan


@dataclass(frozen=True, kw_only=True, slots=True)
class StepWeights:
    """What an action token of each row counts for in one optimizer step; float64."""

    loss_B: Tensor
    """By the loss's aggregation."""
    mean_B: Tensor
    """As a plain mean over the tokens of the step."""


def plan_weights(
    plan: Sequence[Sequence[int]],
    action_counts: Sequence[int],
    aggregation: Aggregation,
    *,
    max_tokens: int,
    ranks: int,
    sum_over_ranks: SumOverRanks,
    masked: Sequence[bool] = (),
) -> list[StepWeights]:
    """Token weights of every optimizer step, normalised over all microbatches and ranks.

    Multiplied by the number of ranks, because data parallelism averages gradients over them.

    Args:
        masked: rollouts whose tokens weigh nothing and are not counted as tokens, though each
            still counts as a rollout (truncated completions, arXiv 2503.14476, as in TRL). Empty:
            none.
    """
    counted = [0 if masked and masked[i] else n for i, n in enumerate(action_counts)]
    counts = [torch.tensor([counted[i] for i in rows], dtype=torch.int64) for rows in plan]
    local = [int(c.sum()) for c in counts] + [len(rows) for rows in plan]
    totals = sum_over_ranks(local)

    def weights(by: Aggregation, count_B: Tensor, tokens: int, rollouts: int) -> Tensor:
        weight_B = token_weights(
            by, count_B, total_tokens=tokens, total_rollouts=rollouts, max_tokens=max_tokens
        )
        return ranks * weight_B.masked_fill(count_B == 0, 0.0)

    return [
        StepWeights(
            loss_B=weights(aggregation, count_B, tokens, rollouts),
            mean_B=weights("token-mean", count_B, tokens, rollouts),
        )
        for count_B, tokens, rollouts in zip(
            counts, totals[: len(plan)], totals[len(plan) :], strict=True
        )
    ]


def permutation(size: int, seed: tuple[int, ...]) -> list[int]:
    """A permutation of ``range(size)`` that depends on ``seed`` alone."""
    generator = torch.Generator()
    mixed = 0
    for part in seed:
        # Steele et al. 2014 (SplitMix64): nearby seeds must not give related permutations.
        mixed = ((mixed ^ part) * 0xBF58476D1CE4E5B9 + 0x9E3779B97F4A7C15) & (2**63 - 1)
    generator.manual_seed(mixed)
    return torch.randperm(size, generator=generator).tolist()
