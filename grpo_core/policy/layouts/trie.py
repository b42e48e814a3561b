"""Rollouts of a group as a prefix tree of segments: what they share stands once.

A segment is a run of tokens that every rollout passing through it has in common; it attends to
its ancestors and, causally, to itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

MIN_SHARED = 16
"""Tokens that a run below the root must have to be shared. Measured on the demo (4 layers, groups
of 8): splitting at every fork makes segments of 1 to 5 tokens, whose separate attention costs more
than the few tokens that it saves."""


@dataclass(slots=True)
class Segment:
    """One node of the tree."""

    token_ids: tuple[int, ...]
    parent: int
    """Index of the parent among the trie's segments, -1 for the root."""
    depth: int
    """Position of the first token, counted from the root."""


@dataclass(slots=True)
class Trie:
    """Segments of some sequences, parents before children, and the way of each sequence."""

    segments: list[Segment] = field(default_factory=list)
    paths: dict[int, list[int]] = field(default_factory=dict)
    """Row to the segments that it passes through, from the root."""

    @property
    def tokens(self) -> int:
        return sum(len(s.token_ids) for s in self.segments)


def build_trie(
    rows: Sequence[int], sequences: Sequence[tuple[int, ...]], *, min_shared: int = MIN_SHARED
) -> Trie:
    """The compressed prefix tree of ``sequences[row] for row in rows``, all with a common first
    token; ``min_shared`` of 1 shares all that can be shared."""
    trie = Trie(paths={row: [] for row in rows})
    _grow(trie, sorted(rows, key=lambda row: sequences[row]), sequences, -1, 0, min_shared)
    return trie


def _grow(
    trie: Trie,
    rows: Sequence[int],
    sequences: Sequence[tuple[int, ...]],
    parent: int,
    depth: int,
    min_shared: int,
) -> None:
    """Add the subtree of rows that agree up to ``depth``; rows are sorted by their tokens."""
    end = _common(sequences[rows[0]], sequences[rows[-1]], depth)
    if len(rows) > 1 and parent >= 0 and end - depth < min_shared:
        for row in rows:
            _add(trie, [row], sequences[row][depth:], parent, depth)
        return
    here = _add(trie, rows, sequences[rows[0]][depth:end], parent, depth)
    longer = [row for row in rows if len(sequences[row]) > end]
    for _, children in groupby(longer, key=lambda row: sequences[row][end]):
        _grow(trie, list(children), sequences, here, end, min_shared)


def _add(
    trie: Trie, rows: Sequence[int], token_ids: tuple[int, ...], parent: int, depth: int
) -> int:
    if not token_ids:
        return parent
    trie.segments.append(Segment(token_ids=token_ids, parent=parent, depth=depth))
    for row in rows:
        trie.paths[row].append(len(trie.segments) - 1)
    return len(trie.segments) - 1


def _common(first: tuple[int, ...], last: tuple[int, ...], start: int) -> int:
    """Where two sequences part. Of sorted sequences, all between them agree up to there too."""
    end = min(len(first), len(last))
    while start < end and first[start] == last[start]:
        start += 1
    return start
