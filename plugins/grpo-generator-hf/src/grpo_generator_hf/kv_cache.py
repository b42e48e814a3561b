"""A batch of sequences with their key-value cache, which can shrink and be multiplied."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PADDING = 0
"""Any id of the vocabulary: what stands left of a short prompt is masked."""


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
        self._cache = DynamicCache(config=base.config)
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
