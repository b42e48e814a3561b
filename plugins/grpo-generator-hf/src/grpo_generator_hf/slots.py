"""Keys and values of the rows that are being decoded, in place from admission to the last token.

Shapes: B rows, P prompts held, S most rows of one prompt, H query heads, K key-value heads, R
query heads per key-value head (H = K * R), D head size, T positions.

A row has a place in a buffer of its own keys and values; a row that leaves is replaced by the last
one, so that nothing else moves. What rows share, the keys and values of their prompt, is held once
and read once per step for all of them (``shared``), or copied into every row where prompts are so
short that one product over longer rows costs less than two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from grpo_generator_hf.attention import Variant, additive, causal, rounded, scores, weigh
from grpo_generator_hf.buffer import Buffer, closed_ranks
from grpo_generator_hf.grid import Grid


@dataclass(frozen=True, kw_only=True, slots=True)
class Admission:
    """Some rows that continue one prompt. Example: ``Admission(prompt_ids=(5, 9, 2), rows=8)``."""

    prompt_ids: tuple[int, ...]
    rows: int


class _Layer:
    """One layer's buffers: of rows, and of prompts where those are shared."""

    def __init__(self, key: Tensor, value: Tensor) -> None:
        self.rows = Buffer(key), Buffer(value)
        self.prompts = Buffer(key), Buffer(value)


class Slots:
    """Which row and which prompt has which place, and how long each one is."""

    def __init__(self, *, shared: bool, device: torch.device) -> None:
        self.shared = shared
        self.device = device
        self._layers: dict[int, _Layer] = {}
        self._lengths_B: list[int] = []
        """Positions in each row's own buffer."""
        self._prompt_B: list[int] = []
        """Place of each row's prompt."""
        self._prompt_lengths_P: list[int] = []
        self._grid: Grid | None = None
        self._admitted: list[Admission] = []
        self._masks: dict[tuple[int | None, torch.dtype], Tensor | None] = {}

    def __len__(self) -> int:
        return len(self._lengths_B)

    @property
    def prompts(self) -> int:
        return len(self._prompt_lengths_P)

    # -- rows come, move on and leave ---------------------------------------------------------

    def admit(self, admissions: Sequence[Admission]) -> None:
        """Give places to new rows, behind those that are there; ``prefill`` then fills them."""
        self._admitted = list(admissions)
        self._grid = None
        for admission in admissions:
            length = len(admission.prompt_ids)
            self._prompt_B += [len(self._prompt_lengths_P)] * admission.rows
            self._lengths_B += [0 if self.shared else length] * admission.rows
            self._prompt_lengths_P.append(length)

    def leave(self, finished: Sequence[int]) -> list[int]:
        """Rows end; the last ones take their places.

        Returns:
            For each place that is left, the place where its row was before.
        """
        order, holes = closed_ranks(len(self), finished)
        # A row that has nothing of its own yet may not even have memory.
        holes = [i for i in holes if self._lengths_B[order[i]]]
        if holes:
            width = max(self._lengths_B[order[i]] for i in holes)
            self._move("rows", [order[i] for i in holes], holes, width)
        self._lengths_B = [self._lengths_B[i] for i in order]
        self._prompt_B = [self._prompt_B[i] for i in order]
        self._grid = None
        self._drop_prompts()
        return order

    def advance(self) -> Tensor:
        """One more token for every row; int64 positions ``(B,)`` in their whole sequences."""
        position = [n + self._prompt_length(b) for b, n in enumerate(self._lengths_B)]
        self._lengths_B = [n + 1 for n in self._lengths_B]
        self._masks = {}
        return torch.tensor(position, device=self.device)

    def _prompt_length(self, row: int) -> int:
        return self._prompt_lengths_P[self._prompt_B[row]] if self.shared else 0

    def _drop_prompts(self) -> None:
        used = set(self._prompt_B)
        unused = [p for p in range(len(self._prompt_lengths_P)) if p not in used]
        if not unused:
            return
        order, holes = closed_ranks(len(self._prompt_lengths_P), unused)
        if holes and self.shared:
            width = max(self._prompt_lengths_P[order[i]] for i in holes)
            self._move("prompts", [order[i] for i in holes], holes, width)
        self._prompt_lengths_P = [self._prompt_lengths_P[p] for p in order]
        place = {old: new for new, old in enumerate(order)}
        self._prompt_B = [place[p] for p in self._prompt_B]

    def _move(self, which: str, source: list[int], target: list[int], positions: int) -> None:
        source_B = torch.tensor(source, device=self.device)
        target_B = torch.tensor(target, device=self.device)
        for layer in self._layers.values():
            for buffer in getattr(layer, which):
                buffer.move(source_B, target_B, positions)

    # -- attention ----------------------------------------------------------------------------

    def prefill(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, variant: Variant
    ) -> Tensor:
        """Keep the prompts' keys and values, and attend within each prompt.

        Args:
            query: ``(1, H, T, D)``: the admitted prompts one behind the other, without padding.
            key: ``(1, K, T, D)``, and ``value`` alike.

        Returns:
            ``(1, T, H, D)``.
        """
        query, key, value = rounded(query), rounded(key), rounded(value)
        if layer not in self._layers:
            self._layers[layer] = _Layer(key, value)
        buffers = self._layers[layer]
        place = len(self._prompt_lengths_P) - len(self._admitted)
        row = len(self) - sum(admission.rows for admission in self._admitted)
        lengths = [len(admission.prompt_ids) for admission in self._admitted]
        for buffer, new in zip(
            buffers.prompts if self.shared else buffers.rows, (key, value), strict=True
        ):
            places = len(self._prompt_lengths_P) if self.shared else len(self)
            held = buffer.reserve(places, max(lengths))
            at = place if self.shared else row
            ends = accumulate(lengths, initial=0)
            for admission, (start, end) in zip(self._admitted, pairwise(ends), strict=True):
                copies = 1 if self.shared else admission.rows
                held[at : at + copies, :, : end - start] = new[0, :, start:end]
                at += copies
        out = [
            causal(q, k, v, variant)
            for q, k, v in zip(*(x.split(lengths, dim=2) for x in (query, key, value)), strict=True)
        ]
        return torch.cat(out, 2).transpose(1, 2)

    def step(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, variant: Variant
    ) -> Tensor:
        """Append one token to every row and attend to all that it sees.

        Args:
            query: ``(B, H, D)``.
            key: ``(B, K, D)``, and ``value`` alike.

        Returns:
            ``(B, H, D)``.
        """
        query, key, value = rounded(query), rounded(key), rounded(value)
        lengths, rows = self._lengths_B, len(self)
        longest = max(lengths)
        keys, values = (x.reserve(rows, longest) for x in self._layers[layer].rows)
        if min(lengths) == longest:
            keys[:rows, :, longest - 1], values[:rows, :, longest - 1] = key, value
        else:
            row_B = torch.arange(rows, device=self.device)
            last_B = torch.tensor(lengths, device=self.device) - 1
            keys[row_B, :, last_B], values[row_B, :, last_B] = key, value
        query_BKRD = query.unflatten(1, (keys.shape[1], -1))
        own = scores(query_BKRD, keys[:rows, :, :longest], variant)
        mask = self._mask(variant.window, own.dtype)
        if mask is not None:
            own = own.add_(mask)
        values = values[:rows, :, :longest]
        out, mass = weigh(own, values)
        if not self.shared:
            return out.flatten(1, 2)
        shared_out, shared_mass = self._attend_to_prompts(layer, query_BKRD, variant)
        # Two softmaxes over parts of a row, put together by the mass of each part.
        share = torch.sigmoid(shared_mass - mass).to(out.dtype)
        return out.lerp(shared_out, share).flatten(1, 2)

    def _attend_to_prompts(
        self, layer: int, query_BKRD: Tensor, variant: Variant
    ) -> tuple[Tensor, Tensor]:
        """All rows of a prompt in one product with its keys and one with its values."""
        if self._grid is None:
            self._grid = Grid(self._prompt_B, self._prompt_lengths_P, self.device)
        grid, prompts = self._grid, len(self._prompt_lengths_P)
        longest = max(self._prompt_lengths_P)
        keys, values = (x.held[:prompts, :, :longest] for x in self._layers[layer].prompts)
        found = scores(grid.spread(query_BKRD), keys, variant)
        if grid.mask is not None:
            found = found.add_(grid.mask.to(found.dtype))
        out, mass = weigh(found, values)
        repeats = query_BKRD.shape[2]
        return grid.collect(out, repeats), grid.collect(mass, repeats)

    def _mask(self, window: int | None, dtype: torch.dtype) -> Tensor | None:
        """Additive, ``(B, 1, 1, T)``; the same for all layers of a step."""
        if (window, dtype) not in self._masks:
            lengths, longest = self._lengths_B, max(self._lengths_B)
            if min(lengths) == longest and (window is None or longest <= window):
                mask = None
            else:
                length_B1 = torch.tensor(lengths, device=self.device)[:, None]
                column_T = torch.arange(longest, device=self.device)
                hidden = column_T >= length_B1
                if window is not None:
                    hidden |= column_T < length_B1 - window
                mask = additive(hidden, dtype)[:, None, None]
            self._masks[window, dtype] = mask
        return self._masks[window, dtype]
