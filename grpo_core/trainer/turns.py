"""Whose turn it is: draws shared out among parts by weight, by arithmetic and without state."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from grpo_core.errors import DataError
from grpo_core.types import PromptShare

PERIOD = 1000
"""Draws after which the turns repeat; shares are exact to one part in so many."""


class Turns:
    """Parts of a sequence, taken in turns that keep to their weights at every moment, so that
    a short run and each single step have the mixture that was asked for, to rounding."""

    def __init__(self, shares: Sequence[PromptShare], total: int) -> None:
        """Raises ``DataError`` when the shares do not make up a sequence of length ``total``."""
        self.sizes = [share.count for share in shares]
        self.starts = [0, *accumulate(self.sizes)][:-1]
        if sum(self.sizes) != total or min(self.sizes) < 1:
            raise DataError(
                f"the task's `shares` have {self.sizes} prompts, its sequence has {total}; each "
                "part needs at least one, and together they are the whole sequence"
            )
        weights = [share.weight for share in shares]
        if not all(0 < weight < float("inf") for weight in weights):
            raise DataError(f"the weights of the task's `shares` must be above 0, not {weights}")
        period = PERIOD if len(shares) > 1 else 1
        self._counts = _apportioned(weights, period)
        self._pattern = _spread(self._counts)
        seen = [0] * len(shares)
        self._before = []
        for part in self._pattern:
            self._before.append(seen[part])
            seen[part] += 1

    def at(self, position: int) -> tuple[int, int]:
        """The part that draw number ``position`` goes to, and how many that part had before."""
        period, offset = divmod(position, len(self._pattern))
        part = self._pattern[offset]
        return part, period * self._counts[part] + self._before[offset]


def _apportioned(weights: Sequence[float], seats: int) -> list[int]:
    """Whole numbers in proportion to weights, by largest remainder, none of them 0."""
    total = sum(weights)
    exact = [weight / total * seats for weight in weights]
    counts = [max(1, int(x)) for x in exact]
    # A weight so small that it would have no turn at all gets one; the largest pays for it.
    while sum(counts) > seats:
        counts[counts.index(max(counts))] -= 1
    for part in sorted(range(len(counts)), key=lambda i: counts[i] - exact[i]):
        if sum(counts) == seats:
            break
        counts[part] += 1
    return counts


def _spread(counts: Sequence[int]) -> list[int]:
    """Each part as often as it has a count, spread evenly: always the one furthest behind."""
    seats = sum(counts)
    given = [0] * len(counts)
    pattern = []
    for position in range(1, seats + 1):
        part = max(range(len(counts)), key=lambda i: counts[i] * position - given[i] * seats)
        given[part] += 1
        pattern.append(part)
    return pattern
