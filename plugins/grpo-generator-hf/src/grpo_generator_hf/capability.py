"""Which way of decoding a model can take; found out by trying, not by a list of architectures."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from grpo_core.policy import coarse, sliding_windows
from grpo_generator_hf.attention import Variant
from grpo_generator_hf.fused_step import FusedStep, anatomy_obstacle
from grpo_generator_hf.model_step import ModelStep, attention_over_slots
from grpo_generator_hf.slots import Admission, Slots

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NEEDED = frozenset({"input_ids", "position_ids", "use_cache"})


def slots_obstacle(base: PreTrainedModel, device: torch.device) -> str | None:
    """Why rows cannot be decoded over `Slots` with this model, or ``None`` if they can.

    To be called, like the next one, with the model in eval mode and without gradients.
    """
    missing = _NEEDED - set(inspect.signature(base.forward).parameters)
    if missing:
        return f"its forward takes no {', '.join(sorted(missing))}"
    if getattr(base, "_is_stateful", False):
        return "it carries a recurrent state"
    try:
        expected = sliding_windows(base)
        error = 0.0
        for shared in (False, True) if can_share(base) else (False,):
            slots = _WatchingSlots(shared=shared, device=device)
            error = max(error, _relative_error(base, slots, ModelStep(base, slots)))
            # A window that a layer only puts into its mask would be lost, and a trial of a few
            # tokens is too short to show it.
            if slots.windows != expected:
                return (
                    f"its layers ask for sliding windows {slots.windows}, its config for {expected}"
                )
    # Whatever an unknown architecture does here, `model.generate` still works.
    except Exception as failure:
        return f"{type(failure).__name__}: {failure}"
    return _too_large(base, error)


def fusion_obstacle(base: PreTrainedModel, device: torch.device) -> str | None:
    """Why one token cannot be computed by `FusedStep`, or ``None`` if it can."""
    reason = anatomy_obstacle(base)
    if reason is not None:
        return reason
    if not can_share(base):
        return "it has sliding windows"
    slots = Slots(shared=True, device=device)
    try:
        return _too_large(base, _relative_error(base, slots, FusedStep(base, slots, rows=4)))
    except Exception as failure:
        return f"{type(failure).__name__}: {failure}"


def can_share(base: PreTrainedModel) -> bool:
    """Whether the rows of a prompt may read its keys and values together: not where a window
    slides, of which each row would see another part."""
    return all(window is None for window in sliding_windows(base))


class _WatchingSlots(Slots):
    """Knows which window each layer asked for."""

    def __init__(self, *, shared: bool, device: torch.device) -> None:
        super().__init__(shared=shared, device=device)
        self._window_of: dict[int, int | None] = {}

    @property
    def windows(self) -> list[int | None]:
        return [self._window_of[layer] for layer in sorted(self._window_of)]

    def prefill(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, variant: Variant
    ) -> Tensor:
        self._window_of[layer] = variant.window
        return super().prefill(layer, query, key, value, variant)


def _too_large(base: PreTrainedModel, error: float) -> str | None:
    rough = coarse(base) or torch.is_autocast_enabled(base.device.type)
    tolerance = 0.25 if rough else 1e-3
    if not error <= tolerance:
        return f"its logits differ by {error:.2g} from those of whole sequences"
    return None


def _relative_error(base: PreTrainedModel, slots: Slots, stepper: ModelStep | FusedStep) -> float:
    """Two prompts of unlike length, doubled, continued, thinned out, joined by a third and
    continued again, against the whole sequences computed alone and without a cache."""
    vocabulary: int = base.config.get_text_config().vocab_size

    def ids(*tokens: int) -> Tensor:
        return torch.tensor(tokens, device=slots.device) % vocabulary

    def prompt(start: int, length: int) -> tuple[int, ...]:
        return tuple((7 * i + start) % vocabulary for i in range(1, length))

    first, second, third = prompt(0, 6), prompt(3, 4), prompt(5, 5)
    model = ModelStep(base, slots)
    with attention_over_slots(base):
        early = [Admission(prompt_ids=first, rows=2), Admission(prompt_ids=second, rows=2)]
        slots.admit(early)
        model.prefill(early)
        stepper.step(ids(1, 2, 3, 4))
        order = slots.leave([0])
        late = [Admission(prompt_ids=third, rows=1)]
        slots.admit(late)
        model.prefill(late)
        following = {3: 7, 1: 5, 2: 6}
        found_BV = stepper.step(ids(*(following[i] for i in order), 8))
    whole = {1: (*first, 2, 5), 2: (*second, 3, 6), 3: (*second, 4, 7)}
    expected_BV = torch.stack(
        [
            base(input_ids=ids(*tokens)[None], use_cache=False).logits[0, -1]
            for tokens in (*(whole[i] for i in order), (*third, 8))
        ]
    )
    spread = (expected_BV - expected_BV.mean(-1, keepdim=True)).double().norm()
    # A head of zeros gives equal logits, whose spread is 0.
    return float((found_BV - expected_BV).double().norm() / spread.clamp(min=1e-12))
