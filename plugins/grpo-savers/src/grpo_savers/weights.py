"""A policy's weights, tokenizer and configs as the files that transformers and PEFT load.

The model being trained is not changed: casts, configs and paths are made on copies or in the
written files.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import GenerationConfig

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_core.protocols import PolicyHandle

DTYPES = {
    "auto": None,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def write_model(policy: PolicyHandle, folder: Path, *, dtype: str, max_shard_size: str) -> None:
    """All weights of a full model, its config and its generation config."""
    model = cast("Any", policy.model)
    target = DTYPES[dtype]
    state = None if target is None else _cast(model.state_dict(), target)
    generation = model.generation_config
    with _plain_generation_config(model):
        model.save_pretrained(folder, state_dict=state, max_shard_size=max_shard_size)
    config = copy.deepcopy(model.config)
    for part in (config, config.get_text_config()):
        # Training without a cache must not leave a model that generates without one.
        part.use_cache = True
        if target is not None:
            # Else from_pretrained would widen the weights again on loading.
            part.dtype = target
    config.save_pretrained(folder)
    values = json.loads(generation.to_json_string(use_diff=True))
    _write_json(folder / "generation_config.json", values | _end_tokens(policy))


def write_adapter(policy: PolicyHandle, folder: Path, *, dtype: str) -> None:
    """The LoRA adapter alone, with the path and revision of the model that it belongs to."""
    model = cast("Any", policy.model)
    target = DTYPES[dtype]
    trained = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    # Embeddings are never resized here; "auto" would look the base model up on the Hub to see.
    model.save_pretrained(
        folder,
        save_embedding_layers=False,
        state_dict=None if target is None else _cast(trained, target),
    )
    path = folder / "adapter_config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values["base_model_name_or_path"] = _lasting_path(policy.settings.path)
    values["revision"] = policy.settings.revision
    _write_json(path, values)


def write_tokenizer(policy: PolicyHandle, folder: Path) -> None:
    """The tokenizer and its chat template."""
    policy.tokenizer.save_pretrained(folder)


def _cast(state: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Tied weights stay tied: one cast per tensor, whatever names it goes by."""
    done: dict[tuple[int, torch.Size], Tensor] = {}
    found = {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tensor.shape)
        if key not in done:
            done[key] = tensor.to(dtype) if tensor.is_floating_point() else tensor
        found[name] = done[key]
    return found


@contextmanager
def _plain_generation_config(model: Any) -> Iterator[None]:
    """Save without the model's generation config, which transformers refuses to write when the
    source checkpoint's has, say, a temperature without do_sample: a finished run would be lost."""
    original = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = original


def _end_tokens(policy: PolicyHandle) -> dict[str, Any]:
    """All ids that ended completions in training, so that generation ends there too."""
    ends = list(policy.eos_token_ids)
    pad = policy.tokenizer.pad_token_id
    return {
        "eos_token_id": ends[0] if len(ends) == 1 else ends,
        "pad_token_id": ends[0] if pad is None and ends else pad,
    }


def _lasting_path(path: str) -> str:
    """A Hub id as it is; a folder in full, because a relative one would be looked for from
    wherever the adapter is loaded."""
    return str(Path(path).resolve()) if Path(path).is_dir() else path


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
