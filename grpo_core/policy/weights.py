"""The policy's weights under the names of the base model, adapters merged in."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from grpo_core.errors import ConfigError
from grpo_core.policy.model import base_of
from grpo_core.policy.quantized import is_quantized, readable, whole

if TYPE_CHECKING:
    from torch import Tensor


def named_tensors(
    model: nn.Module, *, dtype: torch.dtype | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Yield (name in the base model, tensor), each parameter once, in ``dtype`` or its own.

    Adapters are added to a copy, one layer at a time, and the policy stays as it is: merged into
    the layers and taken off again, they would leave 16-bit weights rounded, and 4-bit ones
    quantised anew, so that each look at the weights changed them. Four-bit weights come in float32,
    as the numbers that they stand for.

    Raises:
        ConfigError: an adapter of a 4-bit layer does more than add a matrix (DoRA).
    """
    base = base_of(model)
    for name, parameter in base.named_parameters():
        path, is_wrapped, leaf = name.rpartition(".base_layer.")
        if is_wrapped:
            name = f"{path}.{leaf}"
        elif any(part.startswith("lora_") for part in name.split(".")):
            continue
        tensor = readable(parameter)
        layer: Any = base.get_submodule(path) if is_wrapped else None
        if is_wrapped and _does_more(layer) and not is_quantized(parameter):
            tensor = _merged_by_peft(layer, leaf)
        elif is_wrapped and leaf == "weight":
            tensor = _merged(layer, tensor, path, dtype or tensor.dtype)
        yield name, tensor if dtype is None or not tensor.is_floating_point() else tensor.to(dtype)


@torch.no_grad()
def _merged_by_peft(layer: Any, leaf: str) -> Tensor:
    """Weight or bias of a layer whose adapters do more than add a matrix. PEFT knows how they are
    merged, but only in place: one layer at a time is copied."""
    copied = deepcopy(layer)
    copied.merge()
    found: Tensor = getattr(copied.base_layer, leaf).detach()
    return found


@torch.no_grad()
def merge_rounding(model: nn.Module, dtype: torch.dtype) -> float:
    """How much of what the adapters learned is lost when they are merged in ``dtype``: the largest
    share, over the layers, of an adapter's norm by which the rounded sum is off. 0 is exact."""
    worst = 0.0
    base = base_of(model)
    for name, parameter in base.named_parameters():
        path, is_wrapped, leaf = name.rpartition(".base_layer.")
        if not is_wrapped or leaf != "weight":
            continue
        weight = readable(parameter).double()
        whole = _merged(base.get_submodule(path), weight, path, torch.float64)
        learned = float((whole - weight).norm())
        if learned:
            worst = max(worst, float((whole.to(dtype).double() - whole).norm()) / learned)
    return worst


@torch.no_grad()
def _merged(layer: Any, weight: Tensor, name: str, dtype: torch.dtype) -> Tensor:
    """The weight with the active adapters added, rounded once."""
    if layer.disable_adapters or layer.merged:
        return weight
    # float32 at least: added in 16 bits, sum and summands would both be rounded.
    total = weight if weight.dtype == torch.float64 else weight.float()
    for adapter in _adapters(layer):
        if not _is_plain(layer, adapter):
            raise ConfigError(
                f"adapter {adapter!r} of layer {name!r} does more than add a matrix (DoRA, or a "
                "bias of its own), which cannot be merged into 4 bits; train plain LoRA"
            )
        total = total + whole(layer.get_delta_weight(adapter)).to(total.dtype)
    return total.to(dtype)


def _adapters(layer: Any) -> list[str]:
    """The active adapters that this layer has."""
    own = {*layer.lora_A, *layer.lora_embedding_A}
    return [name for name in layer.active_adapters if name in own]


def _does_more(layer: Any) -> bool:
    active = not (layer.disable_adapters or layer.merged)
    return active and not all(_is_plain(layer, name) for name in _adapters(layer))


def _is_plain(layer: Any, adapter: str) -> bool:
    """Whether the adapter just adds a matrix."""
    odd = (getattr(layer, "lora_variant", {}), getattr(layer, "lora_bias", {}))
    return not any(found.get(adapter) for found in odd)


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
    adapters = _adapters(lora)
    exact = weight.dtype in (torch.float32, torch.float64)
    if not exact or not all(_is_plain(lora, name) for name in adapters):
        return None
    for name in adapters:
        weight = weight + lora.get_delta_weight(name)
    return weight, base.bias
