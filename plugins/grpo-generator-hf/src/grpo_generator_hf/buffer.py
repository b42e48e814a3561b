"""A tensor with a place per row, in which rows come, grow and leave."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


class Buffer:
    """``(places, K, positions, D)``, growing in both directions as rows come and get longer.

    Zeros, not whatever was in memory: what a mask hides is multiplied by 0, and 0 * NaN is NaN.
    """

    def __init__(self, like: Tensor) -> None:
        self._heads, self._size = like.shape[-3], like.shape[-1]
        self.held = like.new_zeros(0, self._heads, 0, self._size)

    def reserve(self, places: int, positions: int) -> Tensor:
        held = self.held
        if places > held.shape[0] or positions > held.shape[2]:
            # A quarter more: growing by one position copied everything at every token, which
            # took 38 % of sampling on the demo.
            if positions > held.shape[2]:
                positions = max(positions, held.shape[2] * 5 // 4) + 16
            self.held = held.new_zeros(
                max(places, held.shape[0]),
                self._heads,
                max(positions, held.shape[2]),
                self._size,
            )
            self.held[: held.shape[0], :, : held.shape[2]] = held
        return self.held

    def move(self, source: Tensor, target: Tensor, positions: int) -> None:
        self.held[target, :, :positions] = self.held[source, :, :positions]


def closed_ranks(places: int, empty: Sequence[int]) -> tuple[list[int], list[int]]:
    """For the places that remain, where their content comes from; and which of them it moves to.

    Example: ``closed_ranks(5, [1, 3])`` is ``([0, 4, 2], [1])``.
    """
    gone = set(empty)
    left = places - len(gone)
    tail = [i for i in range(left, places) if i not in gone]
    holes = [i for i in range(left) if i in gone]
    order = list(range(left))
    for hole, source in zip(holes, tail, strict=True):
        order[hole] = source
    return order, holes
