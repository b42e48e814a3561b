"""Load a causal language model and its tokenizer, and find the parts that the engine needs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpo_core.errors import ConfigError
from grpo_core.policy.head import HeadTransform
from grpo_core.policy.quantized import prepare, quantization_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from grpo_core.settings import LoraSettings, ModelSettings

DTYPES = {
    # float32 by default: at a rate of 1e-6 a bfloat16 weight swallows most of its updates.
    "auto": torch.float32,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}


def load_model(
    settings: ModelSettings, *, seed: int = 0, device: torch.device | None = None
) -> nn.Module:
    """The model on ``device``, dropout off, with adapters if asked for, which ``seed`` decides the
    start of.

    Raises:
        ConfigError: it cannot be loaded; says which path and why.
    """
    device = device or torch.device("cpu")
    more: dict[str, Any] = dict(settings.init_kwargs)
    if settings.quantization is not None:
        more["quantization_config"] = quantization_config(settings.quantization, device)
        # bitsandbytes packs for the device it is on; moved later, the layout would be another's.
        more.setdefault("device_map", {"": device})
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            settings.path,
            revision=settings.revision,
            dtype=DTYPES[settings.dtype],
            attn_implementation=settings.attn_implementation,
            trust_remote_code=settings.trust_remote_code,
            **more,
        )
    # RuntimeError: weights of other shapes than the config says.
    except (OSError, ValueError, ImportError, TypeError, RuntimeError, SafetensorError) as error:
        raise ConfigError(
            f"model.path {settings.path!r} cannot be loaded: {_reason(settings.path, error)}"
        ) from error
    if settings.lora is not None:
        model = _add_lora(model, settings.lora, seed)
        prepare(model, settings)
    disable_dropout(model)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    return cast("nn.Module", model if settings.quantization else model.to(device))


def load_tokenizer(settings: ModelSettings) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with another chat template if asked for.

    Raises:
        ConfigError: it or the template file cannot be loaded.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            settings.path,
            revision=settings.revision,
            trust_remote_code=settings.trust_remote_code,
        )
        if settings.chat_template is not None:
            tokenizer.chat_template = Path(settings.chat_template).read_text(encoding="utf-8")
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(
            f"the tokenizer of model.path {settings.path!r} cannot be loaded: "
            f"{_reason(settings.path, error)}"
        ) from error
    if len(tokenizer) < 2:
        # transformers makes an empty one of a folder without the files of a tokenizer.
        raise ConfigError(
            f"the tokenizer of model.path {settings.path!r} has no words; is a file missing there "
            "(tokenizer.json, tokenizer.model, vocab.json)?"
        )
    return cast("PreTrainedTokenizerBase", tokenizer)


def _reason(path: str, error: Exception) -> str:
    # Of a folder that is not there huggingface_hub only says that its name is no repository's.
    causes: list[BaseException | None] = [error, error.__cause__, error.__context__]
    if any(isinstance(cause, HFValidationError) for cause in causes) and not Path(path).exists():
        return "there is no such folder, and a Hub id is NAME or OWNER/NAME"
    return str(error)


def _add_lora(model: PreTrainedModel, lora: LoraSettings, seed: int) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    modules = lora.target_modules
    config = LoraConfig(
        r=lora.r,
        lora_alpha=cast("int", lora.alpha),  # PEFT only multiplies by it
        target_modules=modules if isinstance(modules, str) else list(modules),
        use_rslora=lora.rslora,
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    try:
        # Without a seed a run that is killed before its first checkpoint would start elsewhere.
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return cast("nn.Module", get_peft_model(model, config))
    except ValueError as error:
        raise ConfigError(f"model.lora does not fit this model: {error}") from error


def disable_dropout(model: nn.Module) -> None:
    """Make every forward pass repeatable: with dropout the ratio of a policy to itself is not 1,
    and gradient checkpointing needs train mode, which would switch it on."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "attn_dropout", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def base_of(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside, adapters left in place."""
    get_base_model = getattr(model, "get_base_model", None)
    return cast("PreTrainedModel", get_base_model() if get_base_model else model)


def has_adapter(model: nn.Module) -> bool:
    """Whether this is a PEFT model."""
    return hasattr(model, "get_base_model")


def eos_token_ids(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Every id that ends a completion: all of the generation config's and the tokenizer's.

    With only the tokenizer's, chat models that end a turn with another id look truncated in
    every rollout (TRL PR 7039).
    """
    config: Any = getattr(base_of(model), "generation_config", None)
    ids = getattr(config, "eos_token_id", None)
    found = {ids} if isinstance(ids, int) else set(ids or ())
    if tokenizer.eos_token_id is not None:
        found.add(tokenizer.eos_token_id)
    return tuple(sorted(found))


def head_transform(model: nn.Module) -> HeadTransform:
    """What this architecture does to its logits, read from its config. ``PolicyModule`` checks it
    against the model's own logits, so an architecture that is not known here is not wrong, only
    slower."""
    config = base_of(model).config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)
    return HeadTransform(
        scale=scale, softcap=getattr(config, "final_logit_softcapping", None) or None
    )


def context_length(model: nn.Module) -> int | None:
    """Most positions that the model was made for; ``None`` when its config names no limit."""
    config = base_of(model).config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return int(limit) if limit else None


def sliding_windows(model: nn.Module) -> list[int | None]:
    """Positions that each layer's attention sees, by the config; ``None`` for all.

    Raises:
        NotImplementedError: there are layers of a kind that is not known here.
    """
    config = base_of(model).config.get_text_config()
    window = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", True) is False:
        window = None
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return [window] * config.num_hidden_layers
    known = {"full_attention": None, "sliding_attention": window}
    odd = [kind for kind in kinds if kind not in known]
    if odd:
        raise NotImplementedError(f"layers of type {odd[0]!r}")
    return [known[kind] for kind in kinds]
