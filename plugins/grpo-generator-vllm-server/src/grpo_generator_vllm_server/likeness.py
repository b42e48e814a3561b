"""Whether vLLM computes what the policy does, as far as their configurations say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from grpo_core.errors import ConfigError
from grpo_core.policy import base_of

COMPUTING = (
    "attention_bias",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "layer_norm_eps",
    "layer_types",
    "logit_scale",
    "max_window_layers",
    "model_type",
    "norm_topk_prob",
    "num_attention_heads",
    "num_experts",
    "num_experts_per_tok",
    "num_hidden_layers",
    "num_key_value_heads",
    "partial_rotary_factor",
    "query_pre_attn_scalar",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "sliding_window",
    "tie_word_embeddings",
    "use_sliding_window",
)
"""Settings that change what a model computes, but no shape of its weights. Log-probs of short
completions would not show all of them: a window is felt behind its end only."""


def config_of(model: Any) -> dict[str, Any]:
    """The part of a policy's configuration that is compared."""
    found: dict[str, Any] = base_of(model).config.get_text_config().to_dict()
    return {name: found[name] for name in COMPUTING if name in found}


def require_alike(who: object, theirs: Mapping[str, Any], policys: Mapping[str, Any]) -> None:
    """Compare settings that both name.

    Raises:
        ConfigError: they differ.
    """
    for name in COMPUTING:
        ours, others = policys.get(name), theirs.get(name)
        if isinstance(ours, Mapping) and isinstance(others, Mapping):
            # vLLM and versions of transformers add their own defaults to it.
            both = sorted(key for key in ours.keys() & others.keys() if ours[key] != others[key])
            differ = bool(both)
        else:
            differ = None not in (ours, others) and not _same(ours, others)
        if differ:
            raise ConfigError(
                f"{who} computes with {name} {others!r}, the policy with {ours!r}: start it with "
                "the policy's own configuration (--hf-overrides, another revision or another model "
                "make it differ), or load the policy with that of the server (model.init_kwargs)"
            )


def _same(ours: Any, others: Any) -> bool:
    if isinstance(ours, list | tuple) and isinstance(others, list | tuple):
        return list(ours) == list(others)
    return bool(ours == others)
