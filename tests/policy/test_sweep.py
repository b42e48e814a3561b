"""Stock architectures, as many as there are kinds: every layout gives the same numbers, or the
model falls back to padding with a reason.

Slow; ``test_architectures`` has the ones that are most used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from grpo_core.policy.layouts import PackedLayout, PaddedLayout, PrefixTreeLayout
from grpo_core.policy.layouts.choose import choose_layout
from grpo_core.policy.module import PolicyModule
from grpo_core.types import Rollout

pytestmark = pytest.mark.slow

BASE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HEAD: dict[str, Any] = {**BASE, "head_dim": 16}
MLA: dict[str, Any] = {
    **BASE,
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
SSM: dict[str, Any] = {"mamba_d_state": 8, "mamba_d_conv": 4, "mamba_expand": 2}

CONFIGS: dict[str, dict[str, Any]] = {
    "Llama": BASE,
    "Qwen2": BASE,
    "Qwen3": HEAD,
    "Mistral": {**BASE, "sliding_window": 4},
    "Ministral": {
        **HEAD,
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "Gemma": HEAD,
    "Gemma2": {**HEAD, "sliding_window": 4},
    "Gemma3Text": {
        **HEAD,
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "Phi": BASE,
    "Phi3": BASE,
    "GPT2": {"vocab_size": 64, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4},
    "GPTNeoX": BASE,
    "GPTNeo": {
        **BASE,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 4,
    },
    "GPTJ": {
        "vocab_size": 64,
        "n_positions": 64,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "rotary_dim": 4,
    },
    "OPT": {**BASE, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "Bloom": {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "Falcon": {**BASE, "new_decoder_architecture": False},
    "Mpt": {"vocab_size": 64, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64},
    "StableLm": BASE,
    "Olmo": BASE,
    "Olmo2": BASE,
    "Olmo3": {
        **BASE,
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "Cohere": BASE,
    "Cohere2": {
        **HEAD,
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "Glm": HEAD,
    "Glm4": HEAD,
    "Granite": {**BASE, "logits_scaling": 4.0},
    "Starcoder2": {**BASE, "sliding_window": 4},
    "Nemotron": BASE,
    "SmolLM3": {**BASE, "no_rope_layers": [1, 0]},
    "Helium": {**BASE, "head_dim": 8},
    "Ernie4_5": HEAD,
    "HunYuanDenseV1": HEAD,
    "SeedOss": HEAD,
    "Exaone4": {
        **HEAD,
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "Arcee": BASE,
    "Apertus": BASE,
    "Mixtral": {**BASE, "num_local_experts": 4, "num_experts_per_tok": 2},
    "Qwen2Moe": {**BASE, **EXPERTS, "shared_expert_intermediate_size": 16},
    "Qwen3Moe": {**HEAD, **EXPERTS},
    "Olmoe": {**BASE, "num_experts": 4, "num_experts_per_tok": 2},
    "GraniteMoe": {**BASE, "num_local_experts": 4, "num_experts_per_tok": 2},
    "GptOss": {
        **HEAD,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "DeepseekV3": {
        **MLA,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    },
    "MiniCPM3": MLA,
    "Mamba": {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "Mamba2": {
        "vocab_size": 64,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "state_size": 8,
        "num_heads": 4,
        "head_dim": 16,
        "n_groups": 1,
        "chunk_size": 4,
    },
    "Jamba": {
        **BASE,
        **SSM,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "use_mamba_kernels": False,
    },
    "Bamba": {
        **BASE,
        **SSM,
        "attn_layer_indices": [1],
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_n_groups": 1,
        "mamba_chunk_size": 4,
    },
    "FalconH1": {
        **BASE,
        **SSM,
        "mamba_d_ssm": 64,
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_n_groups": 1,
        "mamba_chunk_size": 4,
    },
    "Qwen3Next": {
        **HEAD,
        "num_experts": 0,
        "linear_num_value_heads": 2,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "RecurrentGemma": {
        **HEAD,
        "num_hidden_layers": 3,
        "lru_width": 32,
        "attention_window_size": 64,
        "block_types": ["recurrent", "recurrent", "attention"],
    },
    "Lfm2": {**BASE, "layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
    "Rwkv": {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "context_length": 64},
}
RECURRENT = {
    "Bamba",
    "FalconH1",
    "Jamba",
    "Lfm2",
    "Mamba",
    "Mamba2",
    "Qwen3Next",
    "RecurrentGemma",
    "Rwkv",
}
"""A state runs through their tokens: it would run from one completion into the next."""
OWN_ATTENTION = {"Falcon", "GPTJ", "GPTNeo", "Mpt", "Nemotron", "StableLm"}
"""Their layers do not ask transformers' attention interface, which the tree comes in by."""
OTHERS = {
    "Bloom": "",  # alibi is made from a mask of padding
    "GptOss": "attention sinks",
}
PADDED = RECURRENT | OWN_ATTENTION | OTHERS.keys()
HEADS = {"GPT2": "GPT2LMHeadModel", "Gemma3Text": "Gemma3ForCausalLM"}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**CONFIGS[name])
    # Experts one by one: grouped products have no float64.
    config._experts_implementation = "eager"
    model: nn.Module = getattr(transformers, HEADS.get(name, f"{name}ForCausalLM"))(config)
    return model.double().eval()


def rollouts(make: Callable[..., Rollout]) -> list[Rollout]:
    """Longer than the sliding windows of 4, with forks before, at and after a window's width."""
    prompt = (3, 4, 5, 6, 7, 8)
    return [
        make(prompt, (9, 10, 11, 12, 13, 14, 15)),
        make(prompt, (9, 10, 11, 16), sample=1),
        make(prompt, (17,), sample=2),
        make((20,), (21, 22, 23, 24, 25, 26, 27, 28), group=1),
        make((20,), (21, 22, 23, 24, 25, 26, 29, 30), group=1, sample=1),
    ]


def numbers(module: PolicyModule, layout: Any, batch: list[Rollout]) -> list[torch.Tensor]:
    """Log-probs in the order of the rollouts, and the gradient of some number made of them."""
    module.zero_grad()
    [inputs] = layout.microbatches(batch, tokens_per_microbatch=1000)
    flat, _ = module(inputs)
    counts = [batch[row].action_count for row in inputs.rows]
    parts = dict(zip(inputs.rows, flat.split(counts), strict=True))
    logprobs = torch.cat([parts[row] for row in range(len(batch))])
    (logprobs * torch.arange(1, len(logprobs) + 1).sin()).sum().backward()
    gradient = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
    return [logprobs.detach(), gradient / gradient.abs().max()]


def own_logprobs(model: nn.Module, batch: list[Rollout]) -> torch.Tensor:
    """Each rollout by itself, through the model's own logits."""
    found = []
    for rollout in batch:
        ids = torch.tensor([[*rollout.prompt_ids, *rollout.token_ids]])
        with torch.no_grad():
            logp = model(input_ids=ids, use_cache=False).logits[0].double().log_softmax(-1)
        start = len(rollout.prompt_ids)
        found += [logp[at - 1, ids[0, at]] for at in range(start, ids.shape[1])]
    return torch.stack(found)


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_layouts_agree_or_padding_is_chosen_with_a_reason(
    name: str,
    make_rollout: Callable[..., Rollout],
    exact_norms: Callable[[nn.Module], nn.Module],
) -> None:
    model = build(name)
    module = PolicyModule(exact_norms(model))
    batch = rollouts(make_rollout)
    layout, reason = choose_layout("auto", module)
    # Layers that are in float32 in every model: norms, softmax of routers, rotary embeddings.
    tolerance = 1e-6
    padded = numbers(module, PaddedLayout(), batch)
    torch.testing.assert_close(
        padded[0].double(), own_logprobs(model, batch), rtol=tolerance, atol=tolerance
    )
    if name in PADDED:
        assert isinstance(layout, PaddedLayout), reason
        before, said, why = reason.partition("padded, because prefix-tree does not work here: ")
        assert (before, bool(said)) == ("", True)
        assert why
        assert OTHERS.get(name, "") in why
        assert (name in OWN_ATTENTION) <= ("attention interface" in why)
        return
    assert isinstance(layout, PrefixTreeLayout), reason
    for tree in (PrefixTreeLayout(min_shared=1), PackedLayout()):
        for found, wanted in zip(numbers(module, tree, batch), padded, strict=True):
            torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
