"""Whether a model's key-value cache does what the decode loop needs; found out by trying."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import torch
from transformers import DynamicCache

from grpo_generator_hf.kv_cache import CachedBatch, input_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NEEDED = frozenset({"input_ids", "attention_mask", "past_key_values", "use_cache"})
# By name, since not every supported version of transformers has all of them, and exactly these:
# subclasses with a recurrent state inherit methods that multiply keys and values but not the state.
_LAYERS = frozenset({"DynamicLayer", "DynamicSlidingWindowLayer", "DummyLayer"})


def obstacle(base: PreTrainedModel) -> str | None:
    """Why the decode loop cannot be used with this model, or ``None`` if it can.

    To be called with the model in eval mode and without gradients.
    """
    missing = _NEEDED - set(inspect.signature(base.forward).parameters)
    if missing:
        return f"its forward takes no {', '.join(sorted(missing))}"
    if getattr(base, "_is_stateful", False):
        return "it carries a recurrent state"
    layers = DynamicCache(config=base.config).layers
    other = sorted({type(layer).__name__ for layer in layers} - _LAYERS)
    if other:
        return f"its cache has layers of type {', '.join(other)}"
    error = _relative_error(base)
    tolerance = 1e-3 if base.dtype in (torch.float32, torch.float64) else 0.25
    if torch.is_autocast_enabled(base.device.type):
        tolerance = 0.25
    if not error <= tolerance:
        return f"its logits differ by {error:.2g} with padding and cache from those without"
    return None


def _relative_error(base: PreTrainedModel) -> float:
    """Two prompts of unlike length, padded, computed, doubled, continued, thinned out and continued
    again, against the whole sequences computed alone and without a cache."""
    vocabulary: int = base.config.get_text_config().vocab_size
    first, second = ([(7 * i + s) % vocabulary for i in range(1, n)] for s, n in ((0, 6), (3, 4)))
    device = input_device(base)
    batch = CachedBatch(base)
    batch.prefill([first, second])
    batch.select(torch.tensor([0, 0, 1, 1], device=device))
    batch.step(torch.tensor([1, 2, 3, 4], device=device) % vocabulary)
    batch.select(torch.tensor([1, 2], device=device))
    found_BV = batch.step(torch.tensor([5, 6], device=device) % vocabulary)
    expected_BV = torch.stack(
        [
            base(input_ids=torch.tensor([ids], device=device) % vocabulary).logits[0, -1]
            for ids in ([*first, 2, 5], [*second, 3, 6])
        ]
    )
    spread = (expected_BV - expected_BV.mean(-1, keepdim=True)).double().norm()
    # A head of zeros gives equal logits, whose spread is 0.
    return float((found_BV - expected_BV).double().norm() / spread.clamp(min=1e-12))
