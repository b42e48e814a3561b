"""Load a sequence classification model without touching anything of the policy's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForSequenceClassification

from grpo_core.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from grpo_reward_model.config import RewardModelConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(config: RewardModelConfig) -> PreTrainedModel:
    """The model, in evaluation mode, on its device.

    Raises:
        ConfigError: it cannot be loaded, or its checkpoint lacks weights: a head that was never
            trained gives plausible scores that mean nothing.
    """
    device = device_of(config.device)
    dtype: Any = DTYPES.get(config.dtype) or ("auto" if device.type == "cuda" else torch.float32)
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    # Weights that are missing are drawn at random before they are reported; the policy's run must
    # not depend on that.
    with torch.random.fork_rng(devices=devices):
        try:
            loaded: Any = AutoModelForSequenceClassification.from_pretrained(
                config.path,
                revision=config.revision,
                dtype=dtype,
                attn_implementation=config.attn_implementation,
                trust_remote_code=config.trust_remote_code,
                output_loading_info=True,
            )
        except (OSError, ValueError, ImportError, RuntimeError) as error:
            raise ConfigError(f"reward model {config.path!r} cannot be loaded: {error}") from error
    missing = sorted(loaded[1]["missing_keys"])
    if missing:
        raise ConfigError(
            f"reward model {config.path!r} has no weights for {', '.join(missing[:3])}: this is "
            "no trained sequence classification model, and its scores would be random"
        )
    model: PreTrainedModel = loaded[0].to(device).eval()
    return model


def device_of(name: str) -> torch.device:
    """Raises ``ConfigError`` for what is no device, or not on this machine."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"reward model: device {name!r}: {error}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"reward model: device {name!r}, but there is no CUDA GPU")
    if device.type == "cuda" and device.index is None:
        # Fixed now: the current device is each rank's own, and may change later.
        return torch.device("cuda", torch.cuda.current_device())
    return device


def output_index(model: PreTrainedModel, output: int | str | None) -> int:
    """Which logit is the score.

    Raises:
        ConfigError: several outputs and none was chosen, or one that is not there.
    """
    config: Any = model.config
    count = int(config.num_labels)
    labels: dict[int, str] = dict(config.id2label or {})
    if output is None and count == 1:
        return 0
    known = ", ".join(f"{i} ({labels.get(i, '?')})" for i in range(count))
    if output is None:
        raise ConfigError(
            f"the reward model has {count} outputs: {known}; say with the option output which of "
            "them is the score"
        )
    index = next((i for i, name in labels.items() if name == output), output)
    if not isinstance(index, int) or not 0 <= index < count:
        raise ConfigError(f"the reward model has no output {output!r}; there are: {known}")
    return index


def pad_token_id(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The padding id, the same for tokenizer and model, which finds the last token by it (with
    another, it would score the padding). The tokenizer's, else the model's, else end of sequence.

    Raises:
        ConfigError: there is none.
    """
    config = model.config.get_text_config()
    for found in (tokenizer.pad_token_id, config.pad_token_id, tokenizer.eos_token_id):
        if isinstance(found, int):
            config.pad_token_id = found
            return found
    raise ConfigError("the reward model's tokenizer has neither a padding nor an end token")


def context_length(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Most tokens of an input; ``None`` where neither config names a limit."""
    config = model.config.get_text_config()
    names = ("max_position_embeddings", "n_positions")
    limits = [getattr(config, name, None) for name in names]
    # Tokenizers without a limit hold a number like 1e30.
    limits.append(tokenizer.model_max_length)
    known = [int(limit) for limit in limits if limit and limit < 10**9]
    return min(known, default=None)
