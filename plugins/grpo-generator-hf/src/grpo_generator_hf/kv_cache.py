"""A batch of sequences with their key-value cache, which can shrink and be multiplied."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PADDING = 0
"""Any id of the vocabulary: what stands left of a short prompt is masked."""


_ROOM = 32
"""Positions that a cache grows by when it is full. Measured on the demo, where growing by one
position took 38 % of sampling: it copies everything that is there at every token."""


class GrowingLayer(DynamicLayer):
    """A layer's keys and values as views of buffers with room to spare."""

    _keys: Tensor | None = None
    _values: Tensor | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append in place; returns views of everything so far, ``(B, heads, length, D)``."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if self._keys is None or self._values is None or end > self._keys.shape[-2]:
            self._keys = _roomy(self.keys if start else None, key_states, end)
            self._values = _roomy(self.values if start else None, value_states, end)
        self._keys[..., start:end, :] = key_states
        self._values[..., start:end, :] = value_states
        self.keys, self.values = self._keys[..., :end, :], self._values[..., :end, :]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, each as often as it is named."""
        super().batch_select_indices(indices)
        # What is left fills its memory exactly; the next update makes room again.
        self._keys = self._values = None


def _roomy(held: Tensor | None, new: Tensor, length: int) -> Tensor:
    """A buffer for ``length`` positions and some more, holding what was held."""
    buffer = new.new_empty((*new.shape[:-2], length + _ROOM, new.shape[-1]))
    if held is not None:
        buffer[..., : held.shape[-2], :] = held
    return buffer


def growing_cache(base: PreTrainedModel) -> DynamicCache:
    """The model's own kind of cache, its plain layers exchanged for ones that grow in place."""
    cache = DynamicCache(config=base.config)
    make: Any = GrowingLayer  # transformers leaves its constructor without types
    cache.layers = [make() if type(x) is DynamicLayer else x for x in cache.layers]
    return cache


def input_device(base: PreTrainedModel) -> torch.device:
    """Where token ids go; with layers on several devices that is the embedding's."""
    return cast("Tensor", base.get_input_embeddings().weight).device


class CachedBatch:
    """Left-padded prompts of a model, computed once, then continued token by token.

    Left padding puts every row's next token in the same column; position ids count from each
    row's own first token, so that a row's numbers do not depend on its neighbours' lengths.
    """

    def __init__(self, base: PreTrainedModel) -> None:
        self._base = base
        self._device = input_device(base)
        self._cache = growing_cache(base)
        self._takes = frozenset(inspect.signature(base.forward).parameters)
        self._mask_BT = torch.empty(0, 0, dtype=torch.long)
        self._length_B = torch.empty(0, dtype=torch.long)

    def prefill(self, prompts_P: Sequence[Sequence[int]]) -> Tensor:
        """Compute the prompts; logits of each one's next token, ``(P, V)``."""
        width = max(map(len, prompts_P))
        padded = [[_PADDING] * (width - len(ids)) + list(ids) for ids in prompts_P]
        length_P = torch.tensor([len(ids) for ids in prompts_P], device=self._device)
        column_T = torch.arange(width, device=self._device)
        first_P1 = (width - length_P)[:, None]
        self._mask_BT = (column_T >= first_P1).long()
        self._length_B = length_P
        position_PT = (column_T - first_P1).clamp(min=0)
        return self._forward(torch.tensor(padded, device=self._device), position_PT)

    def select(self, index_B: Tensor) -> None:
        """Go on with these rows, each as often as it is named."""
        # Keys and values are copied whole: the caller decides when that pays.
        self._cache.batch_select_indices(index_B)
        self._mask_BT = self._mask_BT[index_B]
        self._length_B = self._length_B[index_B]

    def step(self, token_B: Tensor) -> Tensor:
        """Append one token to each row; logits of the next one, ``(B, V)``."""
        one_B1 = torch.ones_like(token_B)[:, None]
        self._mask_BT = torch.cat([self._mask_BT, one_B1], 1)
        position_B1 = self._length_B[:, None]
        self._length_B = self._length_B + 1
        return self._forward(token_B[:, None], position_B1)

    def _forward(self, ids_BT: Tensor, position_BT: Tensor) -> Tensor:
        kwargs: dict[str, Any] = {}
        if "position_ids" in self._takes:
            kwargs["position_ids"] = position_BT
        if "logits_to_keep" in self._takes:
            # A prompt's other logits would need as much memory as prompt x vocabulary.
            kwargs["logits_to_keep"] = 1
        output = self._base(
            input_ids=ids_BT,
            attention_mask=self._mask_BT,
            past_key_values=self._cache,
            # Said aloud: gradient checkpointing and some configs switch it off.
            use_cache=True,
            **kwargs,
        )
        return cast("Tensor", output.logits[:, -1])
