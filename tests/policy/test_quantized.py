"""QLoRA: 4-bit base weights, adapters that train beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from grpo_core import ModelSettings, Policy
from grpo_core.errors import ConfigError
from grpo_core.policy import coarse, merge_rounding, named_tensors
from grpo_core.policy.quantized import is_quantized, readable

pytest.importorskip("bitsandbytes")
IDS = torch.arange(8)[None]


def make(path: Path, **other: Any) -> Policy:
    quantization = other.pop("quantization", {})
    return Policy(
        ModelSettings(path=str(path), lora={"r": 2}, quantization=quantization, **other), seed=0
    )


def plain_twin(policy: Policy) -> dict[str, torch.Tensor]:
    """The weights that the 4-bit ones stand for."""
    return {n: t.clone() for n, t in named_tensors(policy.model)}


def test_what_is_in_which_numbers(tiny_model: Path) -> None:
    policy = make(tiny_model)
    dtypes = {n: p.dtype for n, p in policy.model.named_parameters() if not is_quantized(p)}
    four_bit = [n for n, p in policy.model.named_parameters() if is_quantized(p)]
    assert set(dtypes.values()) == {torch.float32}
    assert len(four_bit) == 14
    assert not any("lora" in n or "norm" in n or "embed" in n for n in four_bit)
    assert {n for n, p in policy.model.named_parameters() if p.requires_grad} == {
        n for n in dtypes if "lora_" in n
    }
    assert policy.precision == "float32 with nf4 layers"
    assert not policy.mixed


def test_the_papers_dtypes(tiny_model: Path) -> None:
    quantization = {"compute_dtype": "bfloat16", "adapter_dtype": "bfloat16"}
    policy = make(tiny_model, quantization=quantization)
    trained = {p.dtype for p in policy.model.parameters() if p.requires_grad}
    assert trained == {torch.bfloat16}
    assert policy.mixed
    assert coarse(make(tiny_model, quantization={"compute_dtype": "bfloat16"}).model)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_the_numbers_that_4_bits_stand_for(
    tiny_model: Path, checkpointing: bool, double: bool
) -> None:
    """After sampling, too: bitsandbytes packs the weights anew in eval mode without gradient, for
    kernels that have no backward, and the layers below would learn nothing."""
    from transformers import AutoModelForCausalLM

    policy = make(tiny_model, gradient_checkpointing=checkpointing, quantization={"double": double})
    model: Any = policy.model
    before = plain_twin(policy)
    model.eval()
    with torch.no_grad():
        model(IDS)
    torch.testing.assert_close(plain_twin(policy), before, rtol=0, atol=0)
    model.train(checkpointing)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    model(IDS).logits.sin().sum().backward()
    twin: Any = Policy(ModelSettings(path=str(tiny_model), lora={"r": 2}), seed=0).model
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(tiny_model)
        own = dict(plain.named_parameters())
        assert own.keys() == before.keys()
        parts = dict(model.named_parameters())
        for name, parameter in twin.named_parameters():
            source = readable(parts[name])
            parameter.copy_(source.reshape(parameter.shape))
    twin(IDS).logits.sin().sum().backward()
    for name, parameter in twin.named_parameters():
        if parameter.requires_grad:
            found = parts[name].grad
            assert found is not None, name
            assert found.abs().max() > 0, name
            torch.testing.assert_close(found, parameter.grad, rtol=1e-4, atol=1e-5)


def test_looking_at_the_weights_does_not_change_them(tiny_model: Path) -> None:
    """Merged into the layer and taken off again, 4-bit weights are quantised twice."""
    policy = make(tiny_model)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    before = {n: p.detach().clone() for n, p in policy.model.named_parameters()}
    for _ in named_tensors(policy.model):
        pass
    for name, parameter in policy.model.named_parameters():
        assert torch.equal(parameter, before[name]), name
    assert merge_rounding(policy.model, torch.float64) == 0
    assert 1e-4 < merge_rounding(policy.model, torch.bfloat16) < 1


def test_it_gets_the_lean_layout(tiny_model: Path) -> None:
    policy = make(tiny_model)
    policy.prepare(optimizer_steps=1, temperature=1.0, tokens_per_microbatch=64)
    assert policy.layout.startswith("prefix-tree, since")


def test_without_adapters_it_is_refused(tiny_model: Path) -> None:
    with pytest.raises(ValueError, match="nothing to train"):
        ModelSettings(path=str(tiny_model), quantization={})


def test_a_missing_library_is_named(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    with pytest.raises(ConfigError, match=r"grpo-core\[qlora\]"):
        make(tiny_model)
