"""Loading, adapters, the optimizer and the weights that a generator gets."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from grpo_core import ModelSettings, OptimizerSettings, Policy
from grpo_core.errors import ConfigError
from grpo_core.policy.model import disable_dropout, eos_token_ids
from grpo_core.policy.optimizer import make_optimizer, rate_schedule
from grpo_core.policy.weights import named_tensors
from grpo_core.types import Rollout


def settings(model: Path, **changes: object) -> ModelSettings:
    return ModelSettings.model_validate({"path": str(model), **changes})


@pytest.mark.parametrize(
    ("changes", "dtype"),
    [
        ({}, torch.float32),
        ({"dtype": "bfloat16"}, torch.bfloat16),
        ({"dtype": "float64"}, torch.float64),
    ],
)
def test_dtypes(tiny_model: Path, changes: dict[str, str], dtype: torch.dtype) -> None:
    policy = Policy(settings(tiny_model, **changes))
    assert {p.dtype for p in policy.model.parameters()} == {dtype}


def test_mixed_precision_on_a_cpu_is_only_used_when_asked_for(tiny_model: Path) -> None:
    assert Policy(settings(tiny_model)).precision == "float32"
    mixed = Policy(settings(tiny_model, mixed_precision="bf16"))
    assert mixed.precision == "float32 weights, bf16 autocast"
    assert mixed.mixed


def test_autocast_computes_in_bfloat16_and_sums_in_float32(
    tiny_model: Path, make_rollout: Callable[..., Rollout]
) -> None:
    rollouts = [make_rollout((5, 6), (7, 8, 9))]
    found = {}
    for precision in ("no", "bf16"):
        policy = Policy(settings(tiny_model, mixed_precision=precision))
        policy.prepare(optimizer_steps=1, temperature=1.0, tokens_per_microbatch=100)
        [found[precision]] = policy.logprobs(rollouts)
        assert found[precision].dtype == torch.float32
    difference = (found["no"] - found["bf16"]).abs().max()
    assert 1e-4 < difference < 0.3


def test_a_model_that_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"model.path '.*' cannot be loaded"):
        Policy(settings(tmp_path))


@pytest.mark.parametrize("damage", ["truncated", "other shapes", "no tokenizer"])
def test_a_model_whose_folder_is_damaged(damage: str, tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    if damage == "truncated":
        os.truncate(folder / "model.safetensors", 5000)
    elif damage == "other shapes":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 32}))
    else:
        for path in folder.glob("tokenizer*"):
            path.unlink()
    with pytest.raises(ConfigError, match=r"model.path '.*' (cannot be loaded|has no words)"):
        Policy(settings(folder))


def test_adapters_that_fit_nothing(tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.lora does not fit this model"):
        Policy(settings(tiny_model, lora={"target_modules": ["no_such_layer"]}))


def test_chat_template_from_a_file(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text("hello")
    policy = Policy(settings(tiny_model, chat_template=str(tmp_path / "t.jinja")))
    assert policy.tokenizer.chat_template == "hello"
    with pytest.raises(ConfigError, match="tokenizer"):
        Policy(settings(tiny_model, chat_template=str(tmp_path / "absent")))


def test_every_end_token_counts(tiny_model: Path) -> None:
    policy = Policy(settings(tiny_model))
    policy.model.generation_config.eos_token_id = [7, 9]
    found = eos_token_ids(policy.model, policy.tokenizer)
    assert found == tuple(sorted({7, 9, policy.tokenizer.eos_token_id}))


def test_a_policy_with_dropout_is_repeatable_in_train_mode() -> None:
    config = GPT2Config(vocab_size=32, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    model = GPT2LMHeadModel(config).train()
    ids = torch.arange(8)[None]
    assert not torch.equal(model(ids).logits, model(ids).logits)
    disable_dropout(model)
    assert torch.equal(model(ids).logits, model(ids).logits)


def with_adapter(model: torch.nn.Module, **options: Any) -> torch.nn.Module:
    """The model with a LoRA that does something."""
    torch.manual_seed(1)
    found: torch.nn.Module = get_peft_model(
        model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", **options)
    )
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    return found.eval()


def gpt2() -> torch.nn.Module:
    """Its weights lie the other way round (Conv1D)."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=32, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    return GPT2LMHeadModel(config)


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float64", "dora", "conv1d"])
def test_sent_weights_hold_the_adapter_and_the_policys_stay_bit_for_bit(
    tiny_model: Path, kind: str
) -> None:
    def plain() -> torch.nn.Module:
        if kind == "conv1d":
            return gpt2()
        dtype = getattr(torch, kind, torch.float32)
        loaded: torch.nn.Module = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=dtype)
        return loaded

    model, receiver = with_adapter(plain(), use_dora=kind == "dora"), plain().eval()
    ids = torch.arange(6)[None]
    expected = model(ids).logits

    def off() -> float:
        return float((receiver(ids).logits - expected).norm().detach() / expected.norm().detach())

    assert off() > 0.3
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    own = dict(receiver.named_parameters())
    with torch.no_grad():
        sent = [n for n, tensor in named_tensors(model) if own[n].copy_(tensor) is not None]
    assert sorted(sent) == sorted(own)
    # Adapter and layer round apart in 16 bits, and their sum once: 8 bits each.
    assert off() < (0.02 if kind == "bfloat16" else 1e-5)
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], was) for name, was in before.items())
    assert not any(getattr(module, "merged", False) for module in model.modules())


def test_a_reader_that_stops_half_way_leaves_the_policy_as_it_was(tiny_model: Path) -> None:
    policy = Policy(settings(tiny_model, lora={"r": 2}))
    layers = [m for m in policy.model.modules() if hasattr(m, "merged")]
    assert layers
    reader = policy.weight_update().named_tensors()
    for _ in range(4):
        next(reader)
        assert not any(m.merged for m in layers)
    reader.close()


def test_schedules() -> None:
    def rates(**changes: object) -> list[float]:
        made = OptimizerSettings.model_validate({"learning_rate": 1.0, **changes})
        return [rate_schedule(made, 10)(step) for step in range(10)]

    assert rates(schedule="constant") == [1.0] * 10
    assert rates(schedule="linear") == pytest.approx([1 - n / 10 for n in range(10)])
    assert rates(schedule="cosine")[5] == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.5)))
    assert rates(schedule="linear", warmup_steps=4)[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_one_dimensional_weights_do_not_decay(tiny_model: Path) -> None:
    policy = Policy(settings(tiny_model))
    optimizer = make_optimizer(policy.model, OptimizerSettings(weight_decay=0.1))
    for group in optimizer.param_groups:
        dims = {p.dim() > 1 for p in group["params"]}
        assert dims == {group["weight_decay"] > 0}
