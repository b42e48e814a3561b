"""Writing a checkpoint, and recording how good the written one is."""

import copy
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerBase,
    Qwen3ForCausalLM,
)

from grpo_core.demo.measuring import Measurement, measure
from grpo_core.types import Prompt

RECORD = "warm_start.json"


def save_weights(
    directory: Path, model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Save a bfloat16 copy of the model, with the tokenizer and a generation config."""
    rounded = copy.deepcopy(model).bfloat16()
    rounded.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    rounded.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def measure_saved(directory: Path, prompts: Sequence[Prompt]) -> dict[str, Measurement]:
    """What the checkpoint as written can do in float32, sampled at temperature 1 and greedy.

    The rounding to bfloat16 is in the figures: a run starts from what was written.
    """
    model = Qwen3ForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    return {
        "sampled": measure(model, tokenizer, prompts),
        "greedy": measure(model, tokenizer, prompts, greedy=True),
    }


def write_record(
    directory: Path, *, seed: int, steps: Mapping[str, int], measured: Mapping[str, Measurement]
) -> None:
    """Write `warm_start.json`: the seed, the steps of each stage, the measurements, versions."""
    record = {
        "seed": seed,
        "supervised_steps": dict(steps),
        "measured": {name: asdict(found) for name, found in measured.items()},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "tokenizers")},
        },
    }
    (directory / RECORD).write_text(json.dumps(record, indent=2) + "\n")
