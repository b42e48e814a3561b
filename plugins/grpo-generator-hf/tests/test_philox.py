"""The counter-based generator against its published vectors, and its uniforms against chance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from grpo_generator_hf.philox import philox4x32, uniforms

ONES = 0xFFFFFFFF
# Known-answer vectors of Random123 (kat_vectors, philox 4x32, 10 rounds).
VECTORS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), VECTORS)
def test_known_answers(
    counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    words = [np.array([word], dtype=np.uint64) for word in counter]
    found = philox4x32((words[0], words[1], words[2], words[3]), key)
    assert tuple(int(word[0]) for word in found) == expected


def draw(**changes: Any) -> np.ndarray[Any, Any]:
    arguments: dict[str, Any] = {
        "seed": 5,
        "step": 2,
        "prompt_key_B": np.array([7]),
        "sample_B": np.array([1]),
        "position_BT": np.arange(4)[None],
    }
    return uniforms(**(arguments | changes))


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 6},
        {"seed": 5 + (1 << 40)},
        {"step": 3},
        {"step": -3},
        {"prompt_key_B": np.array([8])},
        {"sample_B": np.array([2])},
        {"position_BT": np.arange(4)[None] + 4},
    ],
)
def test_every_part_of_the_key_counts(change: dict[str, Any]) -> None:
    assert not np.isin(draw(**change), draw()).any()


def test_a_token_has_its_number_whatever_else_is_asked_for() -> None:
    keys, samples = np.repeat(np.arange(5), 3), np.tile(np.arange(3), 5)
    together = draw(
        prompt_key_B=keys, sample_B=samples, position_BT=np.tile(np.arange(10, 20), (15, 1))
    )
    for row in (0, 7, 14):
        alone = draw(
            prompt_key_B=keys[row : row + 1],
            sample_B=samples[row : row + 1],
            position_BT=np.array([[13]]),
        )
        assert alone[0, 0] == together[row, 3]


def test_uniform_along_every_axis(
    chi_square_p: Callable[[torch.Tensor, torch.Tensor], float],
) -> None:
    """Consecutive counters are what is drawn in practice, so it is they that must look random:
    values, and pairs of neighbours along positions, samples and prompts."""
    prompts, samples, positions = 20, 20, 100
    grid = draw(
        prompt_key_B=np.repeat(np.arange(prompts), samples),
        sample_B=np.tile(np.arange(samples), prompts),
        position_BT=np.tile(np.arange(positions), (prompts * samples, 1)),
    ).reshape(prompts, samples, positions)
    assert grid.min() >= 0
    assert grid.max() < 1
    count = grid.size
    gap = np.abs(np.sort(grid.ravel()) - (np.arange(count) + 0.5) / count).max()
    assert gap < 1.95 / np.sqrt(count)  # Kolmogorov-Smirnov, p = 0.001
    cells = (grid * 10).astype(np.int64)
    for axis in range(3):
        first, second = np.delete(cells, -1, axis), np.delete(cells, 0, axis)
        observed = torch.from_numpy(np.bincount((first * 10 + second).ravel(), minlength=100))
        expected = torch.full((100,), first.size / 100)
        assert chi_square_p(observed, expected) > 0.001
