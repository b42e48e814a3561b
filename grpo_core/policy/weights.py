"""The policy's weights under the names of the base model, adapters merged in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from grpo_core.policy.model import base_of, has_adapter

if TYPE_CHECKING:
    from torch import Tensor, nn


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield (name in the base model, tensor), each parameter once.

    Adapters are merged while the iterator is open and unmerged when it is closed, also after an
    exception: a policy left merged would go on training the wrong function.
    """
    if not has_adapter(model):
        yield from model.named_parameters()
        return
    peft_model = cast("Any", model)
    peft_model.merge_adapter()
    try:
        for name, tensor in base_of(model).named_parameters():
            if ".lora_" not in name:
                yield name.replace(".base_layer.", "."), tensor
    finally:
        peft_model.unmerge_adapter()
