"""Metrics of a step: collected in pieces, reduced once over all pieces and ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any, Literal

import torch
from torch import Tensor

Kind = Literal["mean", "max", "min", "sum"]
Piece = tuple[Kind, float, float]
"""How to combine, value (a sum for means), count."""


class StepMetrics:
    """Collects numbers under ``group/name``.

    Means keep sum and count apart, so that a mean over microbatches and ranks of unequal size is
    the mean over what they hold.
    """

    def __init__(self) -> None:
        self._pieces: dict[str, Piece] = {}

    def mean(self, name: str, values: Tensor | Sequence[float] | float) -> None:
        """Add values to a mean; non-finite ones stay visible and make the mean non-finite."""
        x = torch.as_tensor(values, dtype=torch.float64).detach()
        self._add(name, ("mean", float(x.sum()), float(x.numel())))

    def ratio(self, name: str, numerator: float, denominator: float) -> None:
        """Add to a quotient of sums."""
        self._add(name, ("mean", float(numerator), float(denominator)))

    def sum(self, name: str, value: float) -> None:
        self._add(name, ("sum", float(value), 1.0))

    def extremes(self, name: str, values: Tensor | Sequence[float]) -> None:
        """Keep the least and the greatest as ``name/min`` and ``name/max``."""
        x = torch.as_tensor(values, dtype=torch.float64).detach()
        if x.numel():
            self._add(f"{name}/min", ("min", float(x.min()), 1.0))
            self._add(f"{name}/max", ("max", float(x.max()), 1.0))

    def maximum(self, name: str, value: float) -> None:
        self._add(name, ("max", float(value), 1.0))

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the wall time of a block, in seconds, as ``time/name``; of ranks, the slowest."""
        started = perf_counter()
        try:
            yield
        finally:
            previous = self._pieces.get(f"time/{name}", ("max", 0.0, 1.0))
            self._pieces[f"time/{name}"] = ("max", previous[1] + perf_counter() - started, 1.0)

    def seconds(self, name: str) -> float:
        """What ``timed(name)`` has counted so far on this rank."""
        return self._pieces[f"time/{name}"][1]

    def value(self, name: str, gather: Callable[[list[Any]], list[Any]]) -> float | None:
        """One metric as it stands, over all ranks; ``None`` when nobody has it."""
        one = StepMetrics()
        for piece in gather([self._pieces.get(name)]):
            if piece is not None:
                one._add(name, piece)
        return one.reduced(lambda pieces: pieces).get(name)

    def reduced(self, gather: Callable[[list[Any]], list[Any]]) -> dict[str, float]:
        """Combine the pieces of all ranks; ``gather`` concatenates lists over ranks."""
        combined = StepMetrics()
        for pieces in gather([self._pieces]):
            for name, piece in pieces.items():
                combined._add(name, piece)
        # A mean over nothing is left out: as a NaN it would look like a number gone wrong.
        return {name: _value(piece) for name, piece in sorted(combined._pieces.items()) if piece[2]}

    def _add(self, name: str, piece: Piece) -> None:
        if name in self._pieces:
            kind, value, count = self._pieces[name]
            match kind:
                case "max":
                    value = max(value, piece[1])
                case "min":
                    value = min(value, piece[1])
                case _:
                    value, count = value + piece[1], count + piece[2]
            piece = (kind, value, count)
        self._pieces[name] = piece


def _value(piece: Piece) -> float:
    kind, value, count = piece
    if kind != "mean":
        return value
    return value / count if count else float("nan")
