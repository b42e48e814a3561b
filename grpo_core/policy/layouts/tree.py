"""No padding, and nothing twice: a flat batch of segments (see ``trie`` and ``attention``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from grpo_core.policy.layouts.base import ModelInputs
from grpo_core.policy.layouts.plan import make_plan
from grpo_core.policy.layouts.trie import MIN_SHARED, Trie, build_trie

if TYPE_CHECKING:
    from grpo_core.types import Rollout


class PrefixTreeLayout:
    """The rollouts of a group as one tree: what they share, the prompt above all, is computed
    once, forward and backward. Many trees stand behind each other in one flat batch."""

    def __init__(self, *, min_shared: int = MIN_SHARED, enough: int | None = None) -> None:
        """``enough``: tokens up to which trees are put into one pass, where that is less than the
        budget; a single tree may use the whole budget, since splitting it repeats its prompt."""
        self._min_shared = min_shared
        self._enough = enough

    def microbatches(
        self, rollouts: Sequence[Rollout], *, tokens_per_microbatch: int
    ) -> list[ModelInputs]:
        rows = [i for i, r in enumerate(rollouts) if r.action_count] or [0]
        sequences = [input_tokens(r) for r in rollouts]
        tries = [
            part
            for members in self._trees(rows, rollouts)
            for part in _within(members, sequences, tokens_per_microbatch, self._min_shared)
        ]
        # Largest first: what needs most memory fails at once, not an hour later.
        tries.sort(key=lambda trie: -trie.tokens)
        most = min(self._enough or tokens_per_microbatch, tokens_per_microbatch)
        batches: list[list[Trie]] = []
        filled: list[int] = []
        for trie in tries:
            if batches and filled[-1] + trie.tokens <= most:
                batches[-1].append(trie)
                filled[-1] += trie.tokens
            else:
                batches.append([trie])
                filled.append(trie.tokens)
        return [lay_out(rollouts, batch) for batch in batches]

    def _trees(self, rows: Sequence[int], rollouts: Sequence[Rollout]) -> list[list[int]]:
        """Rows that may share a tree: those of one prompt."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for row in rows:
            groups.setdefault(rollouts[row].prompt_ids, []).append(row)
        return list(groups.values())


class PackedLayout(PrefixTreeLayout):
    """Every rollout by itself, without padding: the tree layout with nothing shared."""

    def _trees(self, rows: Sequence[int], rollouts: Sequence[Rollout]) -> list[list[int]]:
        return [[row] for row in rows]


def input_tokens(rollout: Rollout) -> tuple[int, ...]:
    """What the model reads: all but the last token, which predicts nothing that was sampled."""
    return (*rollout.prompt_ids, *rollout.token_ids)[:-1] or rollout.prompt_ids


def _within(
    members: list[int], sequences: Sequence[tuple[int, ...]], budget: int, min_shared: int
) -> list[Trie]:
    """One tree, or as many as it takes to keep each within the budget."""
    trie = build_trie(members, sequences, min_shared=min_shared)
    if trie.tokens <= budget or len(members) == 1:
        return [trie]
    # Sorted, so that each half keeps as much as it can in common.
    members = sorted(members, key=lambda row: sequences[row])
    half = len(members) // 2
    return [
        *_within(members[:half], sequences, budget, min_shared),
        *_within(members[half:], sequences, budget, min_shared),
    ]


def lay_out(rollouts: Sequence[Rollout], tries: Sequence[Trie]) -> ModelInputs:
    """Put trees behind each other and find where each action token is predicted."""
    token_ids: list[int] = []
    positions: list[int] = []
    spans: list[tuple[int, int]] = []
    parents: list[int] = []
    rows: list[int] = []
    predict: list[int] = []
    target: list[int] = []
    index: list[int] = []
    for trie in tries:
        first = len(spans)
        for segment in trie.segments:
            spans.append((len(token_ids), len(segment.token_ids)))
            parents.append(segment.parent + first if segment.parent >= 0 else -1)
            token_ids.extend(segment.token_ids)
            positions.extend(range(segment.depth, segment.depth + len(segment.token_ids)))
        for row, path in trie.paths.items():
            where = [t for s in path for t in range(spans[s + first][0], sum(spans[s + first]))]
            completion, start = rollouts[row].token_ids, len(rollouts[row].prompt_ids)
            for position in rollouts[row].action_positions:
                predict.append(where[start + position - 1])
                target.append(completion[position])
                index.append(len(rows))
            rows.append(row)
    return ModelInputs(
        rows=tuple(rows),
        model_kwargs={
            "input_ids": torch.tensor([token_ids]),
            "position_ids": torch.tensor([positions]),
            # A mask of four dimensions is taken as it is: without one transformers would build
            # its own, T x T, for what looks like packed sequences.
            "attention_mask": torch.zeros(1, 1, 1, 1),
        },
        attention=make_plan(spans, parents),
        predict_index_N=torch.tensor(predict, dtype=torch.long),
        target_N=torch.tensor(target, dtype=torch.long),
        rollout_index_N=torch.tensor(index, dtype=torch.long),
        tokens=len(token_ids),
    )
