"""The policy's weights under the names of the base model, adapters merged in."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from grpo_core.policy.model import base_of

if TYPE_CHECKING:
    from torch import Tensor


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield (name in the base model, tensor), each parameter once.

    The model is left as it is: merging an adapter in place and taking it out again rounds the base
    weights a little with every sync, which are neither trained nor in a checkpoint.
    """
    base = base_of(model)
    for name, tensor in base.named_parameters():
        if ".lora_" in name:
            continue
        layer, inside, leaf = name.rpartition(".base_layer.")
        if inside:
            yield f"{layer}.{leaf}", _merged(base.get_submodule(layer), leaf)
        else:
            yield name, tensor


@torch.no_grad()
def _merged(layer: nn.Module, leaf: str) -> Tensor:
    """Weight or bias of a layer with its active adapters added."""
    dense = dense_weight(layer)
    if dense is None:
        # PEFT knows how this kind merges, but only in place: one layer at a time is copied.
        copied: Any = deepcopy(layer)
        copied.merge()
        found = getattr(copied.base_layer, leaf)
    else:
        weight, bias = dense
        found = weight if leaf == "weight" else bias
    return cast("Tensor", found).detach()


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
