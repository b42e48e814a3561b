"""Base weights in 4 bits, adapters beside them (QLoRA, arXiv 2305.14314), by bitsandbytes.

What is in which numbers: the linear layers' weights in 4 bits, computed in the compute dtype;
embeddings, norms and the head in ``model.dtype``, float32 by default as in PEFT's
``prepare_model_for_kbit_training``; the adapters in ``quantization.adapter_dtype``. That is float32
by default: the paper (and TRL) trains them in bfloat16, at rates of 1e-4 and more, and at GRPO's
1e-6 a bfloat16 weight swallows most updates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from grpo_core.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_core.settings import ModelSettings, QuantizationSettings

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "uint8": torch.uint8,
}
MAGNITUDE = "lora_magnitude_vector"
"""DoRA's norms of columns (arXiv 2402.09353), which stay in float32."""


def quantization_config(settings: QuantizationSettings, device: torch.device) -> Any:
    """As ``from_pretrained`` takes it.

    Raises:
        ConfigError: bitsandbytes is not installed.
    """
    from importlib.util import find_spec

    from transformers import BitsAndBytesConfig

    if find_spec("bitsandbytes") is None:
        raise ConfigError(
            "model.quantization needs bitsandbytes, which is not installed: "
            "pip install 'grpo-core[qlora]'"
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=settings.type,
        bnb_4bit_use_double_quant=settings.double,
        bnb_4bit_compute_dtype=_compute_dtype(settings, device),
        bnb_4bit_quant_storage=DTYPES[settings.storage_dtype],
    )


def _compute_dtype(settings: QuantizationSettings, device: torch.device) -> torch.dtype:
    if settings.compute_dtype != "auto":
        return DTYPES[settings.compute_dtype]
    bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if bf16 else torch.float32


def prepare(model: nn.Module, settings: ModelSettings) -> None:
    """Make a quantised model with its adapters fit for training; others are left alone."""
    if settings.quantization is None:
        return
    for module in model.modules():
        # On CPUs with AVX512-BF16, bitsandbytes 0.50 packs a layer's weight anew in the first
        # forward pass in eval mode without gradient, for a kernel in bfloat16 that has no backward:
        # after the first sampling, the gradient of all layers below would be gone.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            cast("Any", module).support_avx512bf16_for_cpu = False
    wanted = DTYPES[settings.quantization.adapter_dtype]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32 if MAGNITUDE in name else wanted)


def is_quantized(tensor: Tensor) -> bool:
    """Whether this is a parameter that only bitsandbytes can read."""
    return getattr(tensor, "quant_state", None) is not None


def coarse(model: nn.Module) -> bool:
    """Whether forward passes round as 16 bits do, whatever dtype comes out of them."""
    dtypes: set[object] = {p.dtype for p in model.parameters() if not is_quantized(p)}
    dtypes |= {getattr(module, "compute_dtype", None) for module in model.modules()}
    return bool(dtypes & {torch.bfloat16, torch.float16})


def readable(tensor: Tensor) -> Tensor:
    """The numbers that a parameter stands for, in whole: 4-bit ones in float32, others as they are.
    A sharded one is put together, which every rank must take part in."""
    if not is_quantized(tensor):
        return whole(tensor)
    from bitsandbytes.functional import dequantize_4bit

    found: Tensor = dequantize_4bit(tensor.data, tensor.quant_state)  # type: ignore[attr-defined]
    return found.float()


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or all parts of one that is sharded (FSDP2), gathered on every rank."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else cast("Tensor", gather())
