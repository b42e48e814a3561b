"""Stock architectures: log-probs equal those of the model's own logits, fused or not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from grpo_core.policy.layouts import PaddedLayout, PrefixTreeLayout
from grpo_core.policy.layouts.choose import choose_layout
from grpo_core.policy.module import PolicyModule
from grpo_core.types import Prompt, Rollout, Span

COMMON = {"vocab_size": 64, "max_position_embeddings": 64}
DECODER = {
    **COMMON,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}
SMALL: dict[str, dict[str, Any]] = {
    "Qwen3": {**DECODER, "head_dim": 16},
    "Llama": DECODER,
    "Mistral": {**DECODER, "sliding_window": 4},
    "Gemma2": {**DECODER, "head_dim": 16, "final_logit_softcapping": 2.0, "sliding_window": 4},
    "Phi": {**DECODER},
    "Cohere": {**DECODER, "logit_scale": 0.25, "pad_token_id": 0},
    "Qwen2": DECODER,
    "Phi3": {**DECODER, "pad_token_id": 0},
    "Mixtral": {**DECODER, "num_local_experts": 4, "num_experts_per_tok": 2},
    "Gemma3Text": {
        **DECODER,
        "head_dim": 16,
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "Granite": {**DECODER, "logits_scaling": 4.0},
    "GPT2": {"vocab_size": 64, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2},
    # Hybrid: linear attention in three layers of four.
    "Qwen3Next": {
        **DECODER,
        "num_hidden_layers": 4,
        "head_dim": 16,
        "num_experts": 0,
        "linear_num_value_heads": 2,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    },
    "Mamba": {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
}


# Grouped matrix products have no float64; recurrent layers and Mamba's logits are in float32.
FLOAT32 = ("Mixtral", "Mamba", "Qwen3Next")


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SMALL[name])
    head = {"GPT2": "GPT2LMHeadModel", "Gemma3Text": "Gemma3ForCausalLM"}.get(
        name, f"{name}ForCausalLM"
    )
    model = getattr(transformers, head)(config).eval()
    return model if name in FLOAT32 else model.double()


def rollouts() -> list[Rollout]:
    rows = [((1, 2, 3), (4, 5, 6, 7, 8, 9)), ((10,), (11, 12)), ((13, 14), (15, 16, 17))]
    return [one(group, 0, prompt, ids) for group, (prompt, ids) in enumerate(rows)]


def one(group: int, sample: int, prompt: tuple[int, ...], ids: tuple[int, ...]) -> Rollout:
    return Rollout(
        prompt=Prompt(id=str(group), content="p"),
        prompt_ids=prompt,
        group=group,
        sample=sample,
        spans=(Span(token_ids=ids, logprobs=(0.0,) * len(ids), policy_version=0),),
        text="",
        finish_reason="stop",
    )


# Longer than the sliding windows of 4, with forks before, at and after a window's width.
LONG = [
    one(0, 0, (1, 2, 3, 4, 5, 6), (7, 8, 9, 10, 11, 12, 13)),
    one(0, 1, (1, 2, 3, 4, 5, 6), (7, 8, 9, 14)),
    one(0, 2, (1, 2, 3, 4, 5, 6), (15,)),
    one(1, 0, (20,), (21, 22, 23, 24, 25, 26, 27, 28)),
    one(1, 1, (20,), (21, 22, 23, 24, 25, 26, 29, 30)),
]


def expected(model: nn.Module, rollout: Rollout) -> torch.Tensor:
    ids = torch.tensor([[*rollout.prompt_ids, *rollout.token_ids]])
    with torch.no_grad():
        logp = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
    start = len(rollout.prompt_ids)
    return torch.stack([logp[at - 1, ids[0, at]] for at in range(start, ids.shape[1])])


@pytest.mark.parametrize("name", sorted(SMALL))
def test_fused_logprobs_equal_the_models_own(name: str) -> None:
    model = build(name)
    module = PolicyModule(model)
    assert module.fused
    [inputs] = PaddedLayout().microbatches(rollouts(), tokens_per_microbatch=1000)
    with torch.no_grad():
        found, _ = module(inputs)
    order = [rollouts()[i] for i in inputs.rows]
    tolerance = 1e-5 if name in FLOAT32 else 1e-9
    own = torch.cat([expected(model, r) for r in order]).double()
    torch.testing.assert_close(found.double(), own, rtol=tolerance, atol=tolerance)


TREE = {name: name not in ("Mamba", "Qwen3Next") for name in SMALL}
"""Which architectures get the prefix tree; the others must fall back to padding by themselves."""


@pytest.mark.parametrize("name", sorted(SMALL))
def test_the_layout_of_an_architecture_is_found_by_trying(
    name: str, exact_norms: Callable[[nn.Module], nn.Module]
) -> None:
    module = PolicyModule(exact_norms(build(name)))
    layout, reason = choose_layout("auto", module)
    assert isinstance(layout, PrefixTreeLayout if TREE[name] else PaddedLayout), reason
    if not TREE[name]:
        return
    parts = PrefixTreeLayout(min_shared=1).microbatches(LONG, tokens_per_microbatch=1000)
    [padded] = PaddedLayout().microbatches(LONG, tokens_per_microbatch=1000)
    with torch.no_grad():
        found, wanted = (by_row(module(x)[0], x.rows) for x in (parts[0], padded))
    tolerance = 1e-4 if name in FLOAT32 else 1e-9
    for row, values in wanted.items():
        torch.testing.assert_close(found[row], values, rtol=tolerance, atol=tolerance)


def by_row(flat: torch.Tensor, rows: tuple[int, ...]) -> dict[int, torch.Tensor]:
    parts = flat.split([LONG[row].action_count for row in rows])
    return dict(zip(rows, parts, strict=True))


class OddHead(nn.Module):
    """A head that no fused path knows."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner
        self.weight = inner.weight

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.inner(hidden) ** 3


def test_an_unknown_head_falls_back_to_whole_logits_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = build("Llama")
    model.lm_head = OddHead(model.lm_head)
    with caplog.at_level(logging.WARNING):
        module = PolicyModule(model)
    assert not module.fused
    assert "whole logits" in caplog.text
    [inputs] = PaddedLayout().microbatches(rollouts(), tokens_per_microbatch=1000)
    with torch.no_grad():
        found, _ = module(inputs)
    order = [rollouts()[i] for i in inputs.rows]
    torch.testing.assert_close(found, torch.cat([expected(model, r) for r in order]))


def test_a_hidden_logit_scale_is_noticed() -> None:
    class Scaled(transformers.LlamaForCausalLM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            out = super().forward(*args, **kwargs)
            out.logits = out.logits * 2
            return out

    torch.manual_seed(0)
    model = Scaled(transformers.LlamaConfig(**DECODER)).double().eval()
    assert not PolicyModule(model).fused
