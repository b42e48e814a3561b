"""The script that made the bundled checkpoints still makes checkpoints of the same kind."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from grpo_core.demo import checkpoint
from grpo_core.demo.arithmetic import Arithmetic
from grpo_core.demo.chain import immediate_completion, reasoned_completion
from grpo_core.demo.config import ArithmeticConfig
from grpo_core.demo.saving import RECORD
from grpo_core.demo.supervised import (
    IGNORED,
    Demonstration,
    demonstrations,
    labelled_batch,
    supervised_steps,
)
from grpo_core.demo.warm_start import Goals, make, new_model

tokenizer = AutoTokenizer.from_pretrained(checkpoint("plain"))


def shapes(directory: Path) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    found = load_file(directory / "model.safetensors")
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in found.items()}


def settings(path: Path) -> dict[str, Any]:
    """A JSON file without the version that wrote it, which is the maker's own."""
    content: dict[str, Any] = json.loads(path.read_text())
    content.pop("transformers_version", None)
    return content


def test_only_the_completion_and_its_end_are_labelled() -> None:
    train = Arithmetic(ArithmeticConfig()).train_prompts()
    long, short = reasoned_completion(train.chain(0)), immediate_completion(train.chain(1))
    batch = labelled_batch(
        tokenizer,
        [
            Demonstration(prompt=train[0], completion=long),
            Demonstration(prompt=train[1], completion=short),
        ],
    )
    for row, text in enumerate((long, short)):
        labels = batch["labels"][row]
        labelled = labels != IGNORED
        assert tokenizer.decode(labels[labelled]) == text + tokenizer.eos_token
        assert torch.equal(batch["input_ids"][row][labelled], labels[labelled])
        assert not labelled[:22].any()
        assert not (labelled & (batch["attention_mask"][row] == 0)).any()


def test_the_share_of_immediate_demonstrations_is_the_asked_one() -> None:
    prompts = Arithmetic(ArithmeticConfig(train_size=100)).train_prompts()
    source = demonstrations(prompts, immediate_share=0.75, seed=0)
    shown = [next(source) for _ in range(2000)]
    immediate = sum(one.completion.startswith("<think></think>") for one in shown) / len(shown)
    assert abs(immediate - 0.75) < 4 * (0.75 * 0.25 / 2000) ** 0.5
    assert {one.prompt.id for one in shown[:100]} == {prompt.id for prompt in prompts}


def test_a_goal_out_of_reach_is_an_error() -> None:
    prompts = Arithmetic(ArithmeticConfig(train_size=100)).train_prompts()
    steps = supervised_steps(
        new_model(tokenizer),
        tokenizer,
        demonstrations(prompts, immediate_share=0.0, seed=0),
        rows_per_step=2,
        learning_rate=1e-3,
        warmup_steps=1,
        max_steps=2,
    )
    assert [next(steps), next(steps)] == [1, 2]
    with pytest.raises(RuntimeError, match="not reached within 2 steps"):
        next(steps)


@pytest.mark.slow
def test_the_script_makes_checkpoints_of_the_same_kind(tmp_path: Path) -> None:
    make(tmp_path, seed=3, goals=Goals(plain=0.2, skill=0.35))
    for name in ("plain", "habit"):
        made, bundled = tmp_path / name, checkpoint(name)
        assert {path.name for path in made.iterdir()} == {path.name for path in bundled.iterdir()}
        assert shapes(made) == shapes(bundled)
        for file in bundled.iterdir():
            if file.name == RECORD:
                continue
            if file.suffix == ".json":
                assert settings(made / file.name) == settings(file), file.name
            elif file.suffix == ".jinja":
                assert (made / file.name).read_text() == file.read_text()
    plain, habit = (
        json.loads((tmp_path / name / RECORD).read_text())["measured"]["sampled"]
        for name in ("plain", "habit")
    )
    assert plain["reasoning"] > 0.9
    assert habit["reasoning"] < 0.6
