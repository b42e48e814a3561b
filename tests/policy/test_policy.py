"""Loading, adapters, the optimizer and the weights that a generator gets."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from grpo_core import LoraSettings, ModelSettings, OptimizerSettings, Policy
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


def test_merged_weights_are_what_the_adapter_computes(tiny_model: Path) -> None:
    policy = Policy(settings(tiny_model, lora=LoraSettings(r=4).model_dump()))
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    ids = torch.arange(6)[None]
    before = {n: p.detach().clone() for n, p in policy.model.named_parameters()}
    expected = policy.model(ids).logits
    plain = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert not torch.allclose(plain(ids).logits, expected, atol=1e-3)
    own = dict(plain.named_parameters())
    with torch.no_grad():
        sent = [
            name
            for name, tensor in named_tensors(policy.model)
            if own[name].copy_(tensor) is not None
        ]
    assert sorted(sent) == sorted(own)
    torch.testing.assert_close(plain(ids).logits, expected, rtol=1e-4, atol=1e-4)
    for name, parameter in policy.model.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name], rtol=1e-6, atol=1e-6)


def test_a_reader_that_gives_up_leaves_the_policy_unmerged(tiny_model: Path) -> None:
    policy = Policy(settings(tiny_model, lora={"r": 2}))
    reader = policy.weight_update().named_tensors()
    next(reader)
    reader.close()
    layers = [m for m in policy.model.modules() if hasattr(m, "merged")]
    assert layers
    assert not any(m.merged for m in layers)


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
