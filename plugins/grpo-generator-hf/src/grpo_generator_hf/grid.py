"""Rows sorted by their prompt, so that all rows of a prompt are one matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from grpo_generator_hf.attention import additive


class Grid:
    """Rows sorted into ``(prompts, places)``, with holes where a prompt has fewer rows."""

    def __init__(self, prompt_B: list[int], lengths_P: list[int], device: torch.device) -> None:
        filled = [0] * len(lengths_P)
        place_B = []
        for prompt in prompt_B:
            place_B.append(filled[prompt])
            filled[prompt] += 1
        self._places = max(filled)
        cell_B = [p * self._places + s for p, s in zip(prompt_B, place_B, strict=True)]
        cells = len(lengths_P) * self._places
        row_of = dict(zip(cell_B, range(len(cell_B)), strict=True))
        self._in_order = cell_B == list(range(cells))
        self._cell_B = torch.tensor(cell_B, device=device)
        # A hole computes what row 0 asks, and nobody reads it.
        self._row_C = torch.tensor([row_of.get(c, 0) for c in range(cells)], device=device)
        self.mask: Tensor | None = None
        if min(lengths_P) < max(lengths_P):
            column_T = torch.arange(max(lengths_P), device=device)
            hidden = column_T >= torch.tensor(lengths_P, device=device)[:, None]
            self.mask = additive(hidden, torch.float32)[:, None, None]

    def spread(self, query_BKRD: Tensor) -> Tensor:
        """``(B, K, R, D)`` to ``(P, K, S * R, D)``."""
        cells = query_BKRD if self._in_order else query_BKRD[self._row_C]
        grid: Tensor = cells.unflatten(0, (-1, self._places))
        return grid.transpose(1, 2).flatten(2, 3)

    def collect(self, out: Tensor, repeats: int) -> Tensor:
        """``(P, K, S * R, *)`` to ``(B, K, R, *)``."""
        grid: Tensor = out.unflatten(2, (-1, repeats))
        cells = grid.transpose(1, 2).flatten(0, 1)
        return cells if self._in_order else cells[self._cell_B]
