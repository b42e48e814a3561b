"""The bundled checkpoints are what their records say."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM, set_seed

from grpo_core.demo import checkpoint
from grpo_core.demo.arithmetic import Arithmetic
from grpo_core.demo.config import ArithmeticConfig
from grpo_core.demo.measuring import Measurement, measure

NAMES = ("habit", "plain")
PROMPTS = 128

both = pytest.mark.parametrize("name", NAMES)


def record(name: str) -> dict[str, Any]:
    written: dict[str, Any] = json.loads((checkpoint(name) / "warm_start.json").read_text())
    return written


def measured_now(name: str, *, greedy: bool) -> Measurement:
    set_seed(0)
    model = Qwen3ForCausalLM.from_pretrained(checkpoint(name), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint(name))
    prompts = Arithmetic(ArithmeticConfig(seed=5, eval_size=PROMPTS)).eval_prompts()
    return measure(model, tokenizer, prompts, greedy=greedy)


def test_an_unknown_name_is_an_error_that_lists_what_exists() -> None:
    with pytest.raises(FileNotFoundError, match="'habits'; there are: habit, plain"):
        checkpoint("habits")


@both
def test_it_loads_as_a_small_qwen3_in_bfloat16(name: str) -> None:
    model, report = AutoModelForCausalLM.from_pretrained(
        checkpoint(name), dtype="auto", output_loading_info=True
    )
    assert isinstance(model, Qwen3ForCausalLM)
    assert model.dtype == torch.bfloat16
    assert model.config.tie_word_embeddings
    assert sum(parameter.numel() for parameter in model.parameters()) == 823_808
    assert not any(report.values())


@both
def test_the_directory_is_small_and_holds_nothing_else(name: str) -> None:
    files = {path.name: path.stat().st_size for path in checkpoint(name).iterdir()}
    assert set(files) == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "warm_start.json",
    }
    assert sum(files.values()) < 1_750_000


@both
def test_generation_ends_at_the_end_of_a_turn(name: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoint(name))
    tokenizer = AutoTokenizer.from_pretrained(checkpoint(name))
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id


@both
@pytest.mark.parametrize("greedy", [False, True], ids=["sampled", "greedy"])
def test_its_accuracy_is_the_recorded_one(name: str, greedy: bool) -> None:
    found = measured_now(name, greedy=greedy)
    recorded = record(name)["measured"]["greedy" if greedy else "sampled"]
    for share in ("accuracy", "reasoning"):
        expected = recorded[share]
        variance = expected * (1 - expected) * (1 / PROMPTS + 1 / recorded["prompts"])
        assert abs(getattr(found, share) - expected) <= 4 * math.sqrt(variance), share


def test_habit_leaves_room_and_plain_has_no_habit() -> None:
    habit, plain = (record(name)["measured"]["sampled"] for name in NAMES)
    assert 0.1 <= habit["accuracy"] <= 0.4
    assert habit["reasoning"] < 0.5
    assert plain["reasoning"] > 0.98


@both
def test_the_record_says_how_it_was_made_and_names_no_machine(name: str) -> None:
    written = record(name)
    assert set(written) == {"seed", "supervised_steps", "measured", "versions"}
    assert set(written["versions"]) == {"python", "torch", "transformers", "tokenizers"}
    texts = [path for path in checkpoint(name).iterdir() if path.suffix != ".safetensors"]
    for path in texts:
        assert str(Path.home()) not in path.read_text()
        assert "_name_or_path" not in path.read_text()
