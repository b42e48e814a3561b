"""A model of the generator's own, with the policy's weights."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch

from grpo_core.errors import SyncError
from grpo_core.policy import base_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from grpo_core.types import WeightUpdate


class Copy:
    """Made anew from the config and not by `deepcopy`: the policy's modules may have forwards of
    their own that would go on reading the policy's weights."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._model: PreTrainedModel | None = None

    @torch.no_grad()
    def of(self, update: WeightUpdate) -> PreTrainedModel:
        """The copy, with the weights of ``update``; adapters are merged.

        Raises:
            SyncError: the policy's weights are other ones than the model has.
        """
        base = base_of(update.model)
        if self._model is None:
            self._model = _empty(base)
            self._model.to(torch.device(self._device))  # type: ignore[arg-type]
        mine = dict(self._model.named_parameters())
        for name, tensor in update.named_tensors():
            if name not in mine or mine[name].shape != tensor.shape:
                raise _differs(name)
            mine.pop(name).copy_(tensor)
        for name in mine:
            raise _differs(name)
        theirs = dict(base.named_buffers())
        for name, buffer in self._model.named_buffers():
            if name in theirs:
                buffer.copy_(theirs[name])
        return self._model


def _differs(name: str) -> SyncError:
    return SyncError(
        f"generator 'hf' cannot copy the policy: its weight {name!r} is missing, unknown or of "
        "another shape in a model made from its config; leave generator.device out"
    )


def _empty(base: PreTrainedModel) -> PreTrainedModel:
    config: Any = deepcopy(base.config)
    kind: Any = type(base)
    dtype = next(p.dtype for p in base.parameters() if p.is_floating_point())
    model: PreTrainedModel = kind._from_config(
        config, dtype=dtype, attn_implementation=config._attn_implementation
    )
    model.generation_config = base.generation_config
    model.requires_grad_(False)
    model.eval()
    return model
