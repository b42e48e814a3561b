"""The code that loads what was saved, for the model card."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from grpo_core.types import SaveRequest

LOAD_MODEL = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

path = "."  # this folder, or its id on the Hub
model = AutoModelForCausalLM.from_pretrained(path)
tokenizer = AutoTokenizer.from_pretrained(path)
"""
LOAD_ADAPTER = """\
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

path = "."  # this folder, or its id on the Hub
# Loads the base model, too, in the numbers that the adapter was trained with.
model = AutoPeftModelForCausalLM.from_pretrained(path, dtype="{dtype}")
tokenizer = AutoTokenizer.from_pretrained(path)
"""
LOAD_QUANTIZED = """\
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer, BitsAndBytesConfig

path = "."  # this folder, or its id on the Hub
# The adapter was trained beside 4-bit weights; without quantization_config the model that it is
# added to is a slightly different one.
four_bits = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="{type}",
    bnb_4bit_use_double_quant={double},
    bnb_4bit_compute_dtype="{compute}",
)
model = AutoPeftModelForCausalLM.from_pretrained(
    path, dtype="{dtype}", quantization_config=four_bits
)
tokenizer = AutoTokenizer.from_pretrained(path)
"""
ASK_CHAT = """\
inputs = tokenizer.apply_chat_template(
    [{"role": "user", "content": "..."}],
    add_generation_prompt=True,
    return_dict=True,
    return_tensors="pt",
)
"""
ASK_TEXT = """\
inputs = tokenizer("...", return_tensors="pt")
"""
ANSWER = """\
output = model.generate(**inputs, max_new_tokens=256)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
"""


def usage(request: SaveRequest, *, merged: bool) -> str:
    """Python that loads the model and lets it answer; runs without this package."""
    policy = request.policy
    if merged or not policy.has_adapter:
        load = LOAD_MODEL
    elif policy.settings.quantization is None:
        load = LOAD_ADAPTER.format(dtype=_dtype(request))
    else:
        load = LOAD_QUANTIZED.format(
            dtype=_dtype(request),
            type=policy.settings.quantization.type,
            double=policy.settings.quantization.double,
            compute=_compute_dtype(policy.model),
        )
    ask = ASK_CHAT if policy.tokenizer.chat_template else ASK_TEXT
    return f"{load}{ask}{ANSWER}"


def _dtype(request: SaveRequest) -> str:
    return str(next(request.policy.model.parameters()).dtype).removeprefix("torch.")


def _compute_dtype(model: torch.nn.Module) -> str:
    found = (getattr(module, "compute_dtype", None) for module in model.modules())
    return str(next(filter(None, found), torch.float32)).removeprefix("torch.")
