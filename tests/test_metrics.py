"""Step metrics: pieces of unequal size, and several ranks."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from grpo_core.metrics import StepMetrics

values = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20)


@given(st.lists(values, min_size=1, max_size=4), st.integers(1, 3))
def test_pieces_and_ranks_do_not_matter(pieces: list[list[float]], ranks: int) -> None:
    everyone = [StepMetrics() for _ in range(ranks)]
    for i, piece in enumerate(pieces):
        metrics = everyone[i % ranks]
        metrics.mean("a/mean", piece)
        metrics.extremes("a", torch.tensor(piece, dtype=torch.float64))
        metrics.sum("a/sum", len(piece))

    def gather(_: list[Any]) -> list[Any]:
        return [m._pieces for m in everyone]

    flat = torch.tensor([v for piece in pieces for v in piece], dtype=torch.float64)
    found = everyone[0].reduced(gather)
    assert torch.isclose(torch.tensor(found["a/mean"]), flat.mean().float(), atol=1e-3)
    assert found["a/max"] == flat.max()
    assert found["a/min"] == flat.min()
    assert found["a/sum"] == len(flat)


def test_a_mean_over_nothing_is_absent() -> None:
    metrics = StepMetrics()
    metrics.mean("a/none", [])
    metrics.extremes("a", torch.zeros(0))
    assert metrics.reduced(lambda pieces: pieces) == {}


def test_a_nan_stays_visible() -> None:
    metrics = StepMetrics()
    metrics.mean("a/x", [1.0, float("nan")])
    found = metrics.reduced(lambda pieces: pieces)["a/x"]
    assert found != found


def test_the_slowest_rank_is_timed() -> None:
    one, other = StepMetrics(), StepMetrics()
    with one.timed("x"), other.timed("x"):
        pass
    with other.timed("x"):
        sum(range(100_000))
    slow = other.seconds("x")
    assert one.reduced(lambda _: [one._pieces, other._pieces])["time/x"] == slow > one.seconds("x")
