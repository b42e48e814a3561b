"""Leaner layers compute what the stock ones do, gradients included, and keep less."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch.autograd import gradcheck
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoModelForCausalLM

from grpo_core.policy import fused
from grpo_core.policy.fused import fuse_layers, gated, rms_norm
from tests.policy.test_architectures import SMALL, build


@pytest.mark.parametrize("chunk", [1, 10, 1 << 16])
def test_gradients_of_the_norm(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(fused, "CHUNK", chunk)
    x = torch.randn(2, 3, 5, dtype=torch.float64).transpose(0, 1).requires_grad_()
    weight = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x, w: rms_norm(x, w, 1e-3), (x, weight))
    wanted = weight * x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt()
    torch.testing.assert_close(rms_norm(x, weight, 1e-3), wanted, rtol=1e-12, atol=1e-12)


def test_gradients_of_the_gated_layer() -> None:
    gate, up = (torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weight = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    assert gradcheck(
        lambda g, u, w: gated(g, u, lambda x: nn.functional.linear(x, w)), (gate, up, weight)
    )


@pytest.mark.parametrize("name", sorted(SMALL))
def test_every_architecture_keeps_its_outputs_and_gradients(name: str) -> None:
    plain = build(name).float()
    lean = copy.deepcopy(plain)
    count = fuse_layers(lean)
    assert (count > 0) == (name not in ("GPT2", "Phi")), count
    ids = torch.arange(3, 19).view(2, 8)
    found = []
    for model in (plain, lean):
        out = model(input_ids=ids, use_cache=False).logits
        (out * torch.arange(out.numel()).sin().view_as(out)).sum().backward()
        found.append(out.detach())
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)
    for (which, a), b in zip(plain.named_parameters(), lean.parameters(), strict=True):
        if a.grad is not None:
            bound = 1e-4 * float(a.grad.abs().max())
            torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=bound, msg=which)


def kept_bytes(model: nn.Module) -> int:
    """What autograd keeps of one forward pass, parameters aside."""
    storages: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    alive: list[Any] = []

    def pack(saved: torch.Tensor) -> torch.Tensor:
        alive.append(saved)
        storage = saved.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return saved

    with saved_tensors_hooks(pack, lambda x: x):
        model.base_model(input_ids=torch.zeros(1, 64, dtype=torch.long), use_cache=False)
    return sum(storages.values())


def test_less_is_kept_for_backward() -> None:
    config = transformers.Qwen3Config(
        vocab_size=32,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
    )
    model = transformers.Qwen3ForCausalLM(config)
    before = kept_bytes(model)
    # Two norms of the width, two of the heads, one gated layer, in each of two layers; the last.
    assert fuse_layers(model) == 11
    assert kept_bytes(model) < 0.7 * before


def test_a_copy_uses_its_own_weights(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert fuse_layers(model)
    other = copy.deepcopy(model)
    ids = torch.arange(6)[None]
    before = other(ids).logits
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    assert torch.equal(other(ids).logits, before)


def test_a_layer_that_only_looks_like_a_norm_is_left_alone() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8))
            self.eps = 1e-6

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x - x.mean(-1, keepdim=True)
            return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)

    assert fuse_layers(nn.Sequential(Odd())) == 0


def test_a_norm_that_also_takes_a_gate_is_left_alone() -> None:
    """As in Bamba and Qwen3-Next: alone it is a plain norm, and would pass the trial."""

    class GatedNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8))
            self.variance_epsilon = 1e-6

        def forward(self, x: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
            x = x if gate is None else x * gate
            return self.weight * x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()

    assert fuse_layers(GatedNorm()) == 0
