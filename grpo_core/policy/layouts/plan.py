"""Which tokens of a flat batch see which: a forest of segments.

A segment's tokens see, causally, their own segment, and all of its ancestors. Segments stand in
depth-first order, so that everything below a segment is one slice right behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch


@dataclass(kw_only=True)
class AttentionPlan:
    """The segments of one flat batch, and what attention kernels remember of them."""

    spans: tuple[tuple[int, int], ...]
    """(start, length) of each segment; together they cover the batch, in order."""
    parents: tuple[int, ...]
    """Index of each segment's parent, -1 for roots."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    windows: list[int | None] = field(default_factory=list)
    """Filled during a forward pass with the sliding window that each layer asked for."""
    cache: dict[Any, Any] = field(default_factory=dict)
    """What a kernel makes once for all layers: indices and masks on ``device``."""

    def to(self, device: torch.device) -> AttentionPlan:
        if self.device == device:
            return self
        return AttentionPlan(spans=self.spans, parents=self.parents, device=device)

    @property
    def tokens(self) -> int:
        return sum(length for _, length in self.spans)

    @cached_property
    def ancestors(self) -> list[list[int]]:
        """Of each segment, from its root down."""
        found: list[list[int]] = []
        for parent in self.parents:
            found.append([*found[parent], parent] if parent >= 0 else [])
        return found

    @cached_property
    def before(self) -> list[int]:
        """Tokens in the ancestors of each segment: the position of its first token."""
        return [sum(self.spans[a][1] for a in chain) for chain in self.ancestors]

    @cached_property
    def depth(self) -> int:
        """Positions of the longest path."""
        return max(b + length for b, (_, length) in zip(self.before, self.spans, strict=True))

    @cached_property
    def ends(self) -> list[int]:
        """Where what stands below each segment ends."""
        found = [sum(span) for span in self.spans]
        for i in reversed(range(len(found))):
            if (parent := self.parents[i]) >= 0:
                found[parent] = max(found[parent], found[i])
        return found


def make_plan(spans: Sequence[tuple[int, int]], parents: Sequence[int]) -> AttentionPlan:
    """Plan the attention of a flat batch.

    Raises:
        ValueError: segments are not in depth-first order, or do not cover the batch.
    """
    plan = AttentionPlan(spans=tuple(spans), parents=tuple(parents))
    at, open_ = 0, [-1]
    for i, ((start, length), parent) in enumerate(zip(spans, parents, strict=True)):
        while open_ and open_[-1] != parent:
            open_.pop()
        if start != at or length < 1 or not open_:
            raise ValueError(f"segment {i} (start {start}, parent {parent}) is out of order")
        open_.append(i)
        at += length
    return plan
