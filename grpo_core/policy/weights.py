"""The policy's weights under the names of the base model, adapters merged in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from grpo_core.policy.model import base_of, has_adapter

if TYPE_CHECKING:
    from torch import Tensor


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


def dense_weight(module: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """Weight ``(out, in)`` and bias of a linear layer, its active adapters added; the layer itself
    stays as it is.

    Returns:
        ``None`` where there is no such matrix: another kind of layer, a quantised one, an adapter
        that does not just add one (DoRA), or 16-bit weights, in which the sum would be rounded
        otherwise than adapter and layer are when they compute apart.
    """
    if type(module) is nn.Linear:
        return module.weight, module.bias
    lora: Any = module
    base = getattr(lora, "base_layer", None)
    if type(base) is not nn.Linear or not hasattr(lora, "get_delta_weight"):
        return None
    weight = base.weight
    if lora.disable_adapters or lora.merged:
        return weight, base.bias
    adapters = [name for name in lora.active_adapters if name in lora.lora_A]
    plain = not any(getattr(lora, "lora_variant", {}).get(name) for name in adapters)
    plain &= not any(getattr(lora, "lora_bias", {}).get(name) for name in adapters)
    if not plain or weight.dtype not in (torch.float32, torch.float64):
        return None
    for name in adapters:
        weight = weight + lora.get_delta_weight(name)
    return weight, base.bias
