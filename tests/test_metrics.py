"""Step metrics: pieces of unequal size, and several ranks."""

from __future__ import annotations

from typing import Any

import pytest
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


def test_the_slowest_rank_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 2.0, 3.0, 4.0, 7.0])
    monkeypatch.setattr("grpo_core.metrics.perf_counter", clock.__next__)
    one, other = StepMetrics(), StepMetrics()
    with one.timed("x"):
        pass
    for _ in range(2):
        with other.timed("x"):
            pass
    for rank in (one, other):
        assert rank.reduced(lambda _: [one._pieces, other._pieces])["time/x"] == 4
