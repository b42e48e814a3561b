"""One rollout per row, rows of like length together, padded on the right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from grpo_core.policy.layouts.base import ModelInputs

if TYPE_CHECKING:
    from grpo_core.types import Rollout


class PaddedLayout:
    """Works for every causal model: with padding on the right no token attends to a pad, so
    neither mask nor positions need to be passed, and the fast causal kernels apply."""

    def __init__(self, *, enough: int | None = None) -> None:
        """``enough``: tokens up to which rows are stacked, where that is less than the budget."""
        self._enough = enough

    def microbatches(
        self, rollouts: Sequence[Rollout], *, tokens_per_microbatch: int
    ) -> list[ModelInputs]:
        lengths = [len(r.prompt_ids) + len(r.token_ids) for r in rollouts]
        rows = [i for i, r in enumerate(rollouts) if r.action_count] or [0]
        # Longest first: the pass that needs most memory fails at once, not an hour later.
        rows.sort(key=lambda i: (-lengths[i], i))
        most = min(self._enough or tokens_per_microbatch, tokens_per_microbatch)
        batches: list[list[int]] = []
        for i in rows:
            if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= most:
                batches[-1].append(i)
            else:
                batches.append([i])
        return [_lay_out(rollouts, batch) for batch in batches]


def _lay_out(rollouts: Sequence[Rollout], rows: list[int]) -> ModelInputs:
    # The last token predicts nothing that was sampled: it is never an input.
    sequences = [(*rollouts[i].prompt_ids, *rollouts[i].token_ids)[:-1] for i in rows]
    width = max(1, *(len(s) for s in sequences))
    input_ids = torch.zeros(len(rows), width, dtype=torch.long)
    predict: list[int] = []
    target: list[int] = []
    index: list[int] = []
    for row, (i, sequence) in enumerate(zip(rows, sequences, strict=True)):
        input_ids[row, : len(sequence)] = torch.tensor(sequence, dtype=torch.long)
        token_ids, start = rollouts[i].token_ids, len(rollouts[i].prompt_ids)
        for position in rollouts[i].action_positions:
            predict.append(row * width + start + position - 1)
            target.append(token_ids[position])
            index.append(row)
    return ModelInputs(
        rows=tuple(rows),
        model_kwargs={"input_ids": input_ids},
        predict_index_N=torch.tensor(predict, dtype=torch.long),
        target_N=torch.tensor(target, dtype=torch.long),
        rollout_index_N=torch.tensor(index, dtype=torch.long),
        tokens=input_ids.numel(),
    )
