"""Decoding through the model's own ``forward``: its attention is exchanged for one over `Slots`.

Works for every architecture whose layers call transformers' attention interface; what a layer asks
of attention (scaling, cap, window) arrives with the call.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from grpo_generator_hf.attention import Variant

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from grpo_generator_hf.slots import Admission, Slots

IMPLEMENTATION = "grpo_decode"

Attend = Callable[[int, Tensor, Tensor, Tensor, Variant], Tensor]


class ModelStep:
    """Computes prompts, and one token for every row, with the model itself."""

    def __init__(self, base: PreTrainedModel, slots: Slots) -> None:
        self._base = base
        self._slots = slots
        self._keeps = "logits_to_keep" in inspect.signature(base.forward).parameters

    def prefill(self, admissions: Sequence[Admission]) -> Tensor:
        """Compute prompts that were just admitted; logits of each one's next token, ``(P, V)``.

        One behind the other and without padding, whatever their lengths.
        """
        device = self._slots.device
        ids = [token for admission in admissions for token in admission.prompt_ids]
        positions = [i for admission in admissions for i in range(len(admission.prompt_ids))]
        last_P = [n - 1 for n in accumulate(len(a.prompt_ids) for a in admissions)]
        return self._forward(
            torch.tensor([ids], device=device),
            torch.tensor([positions], device=device),
            self._slots.prefill,
            torch.tensor(last_P, device=device),
        )[0]

    def step(self, token_B: Tensor) -> Tensor:
        """Append one token to each row; logits of the next one, ``(B, V)``."""
        slots = self._slots

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, variant: Variant) -> Tensor:
            return slots.step(layer, q[:, :, 0], k[:, :, 0], v[:, :, 0], variant)[:, None]

        position_B = slots.advance()
        last = torch.zeros(1, dtype=torch.long, device=slots.device)
        return self._forward(token_B[:, None], position_B[:, None], attend, last)[:, 0]

    def _forward(self, ids_BT: Tensor, position_BT: Tensor, attend: Attend, keep: Tensor) -> Tensor:
        # A prompt's other logits would need as much memory as prompt x vocabulary.
        kept = {"logits_to_keep": keep} if self._keeps else {}
        output = self._base(
            input_ids=ids_BT,
            position_ids=position_BT,
            use_cache=False,
            decoding=attend,
            **kept,
        )
        logits = cast("Tensor", output.logits)
        return logits if self._keeps else logits[:, keep]


@contextmanager
def attention_over_slots(base: PreTrainedModel) -> Iterator[None]:
    """The model's layers attend by ``decoding``, within the context."""
    # Layers look it up in their common config at every call. `set_attn_implementation` walks
    # through all modules besides, which took 3 % of sampling on the demo.
    config = base.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = IMPLEMENTATION
    try:
        yield
    finally:
        config._attn_implementation = before


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    decoding: Attend | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Transformers' attention signature: ``(B, heads, T, D)`` in, ``(B, T, heads, D)`` out."""
    if decoding is None:
        raise NotImplementedError("its layers do not hand keyword arguments on to attention")
    for name in ("s_aux", "position_bias", "head_mask"):
        if kwargs.get(name) is not None:
            raise NotImplementedError(f"its attention takes {name}")
    variant = Variant(
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        softcap=kwargs.get("softcap"),
        window=kwargs.get("sliding_window"),
    )
    return decoding(cast("int", module.layer_idx), query, key, value, variant), None


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """Who sees what is known to `Slots`."""


AttentionInterface.register(IMPLEMENTATION, _attention)
AttentionMaskInterface.register(IMPLEMENTATION, cast("Any", _no_mask))
