"""A model's weights, tokenizer and configs as the files that transformers and PEFT load.

The model being trained is not changed, also not by a failure: casts and merges are made on copies,
configs in the written files, and what transformers changes while it writes is put back. Weights
that are sharded over ranks are gathered, so every rank calls these functions; the main one writes.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig

from grpo_core.errors import ConfigError
from grpo_core.policy import base_of, merge_rounding, named_tensors, whole

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_core.protocols import PolicyHandle
    from grpo_savers.config import SafetensorsConfig

logger = logging.getLogger(__name__)

DTYPES = {
    "auto": None,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
MERGE = "merge.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Writer:
    """How, and by whom, models are written. ``folder`` is ``None`` on ranks that only take part."""

    policy: PolicyHandle
    config: SafetensorsConfig

    @property
    def dtype(self) -> torch.dtype | None:
        return DTYPES[self.config.dtype]

    def model(self, model: Any, folder: Path | None) -> None:
        """All weights of a full model, its config and its generation config."""
        state = self._state(model.state_dict().items(), keep=folder is not None)
        if folder is not None:
            generation = getattr(model, "generation_config", None)
            with _left_alone(model):
                self._write(model, generation, state, folder, self.dtype)

    def adapter(self, model: Any, folder: Path | None) -> None:
        """The LoRA adapter alone, with the path and revision of the model that it belongs to."""
        trained = ((n, p.detach()) for n, p in model.named_parameters() if p.requires_grad)
        state = self._state(trained, keep=folder is not None)
        if folder is None:
            return
        # Embeddings are never resized here; "auto" would look the base model up on the Hub to see.
        model.save_pretrained(folder, save_embedding_layers=False, state_dict=state)
        path = folder / "adapter_config.json"
        values = json.loads(path.read_text(encoding="utf-8"))
        values["base_model_name_or_path"] = _lasting_path(self.policy.settings.path)
        values["revision"] = self.policy.settings.revision
        if isinstance(values.get("target_modules"), list):
            # PEFT keeps a set, whose order is another in every process.
            values["target_modules"].sort()
        _write_json(path, values)

    def merged(self, model: Any, folder: Path | None) -> None:
        """The base model with the adapters added to its weights, and how much rounding that cost:
        4-bit weights leave as the numbers that they stand for, in ``dtype`` or float32."""
        dtype = self.dtype or _merged_dtype(model)
        lost = merge_rounding(model, dtype)
        state = self._state(named_tensors(model, dtype=dtype), keep=folder is not None)
        if folder is None:
            return
        base: Any = base_of(model)
        self._write(_empty_copy(base), base.generation_config, state, folder, dtype)
        _write_json(folder / MERGE, {"dtype": str(dtype).removeprefix("torch."), "lost": lost})
        if lost > 0:
            logger.info("merged in %s: rounding took %.2g of the adapter", dtype, lost)

    def tokenizer(self, folder: Path) -> None:
        """The tokenizer, or a processor, with its chat template."""
        self.policy.tokenizer.save_pretrained(folder)

    def _state(self, named: Iterable[tuple[str, Tensor]], *, keep: bool) -> dict[str, Tensor]:
        """Tied weights stay tied: one copy per tensor, whatever names it goes by."""
        done: dict[tuple[int, torch.Size], Tensor] = {}
        found = {}
        for name, tensor in named:
            if tensor.numel() == 0 and hasattr(tensor, "ds_id"):
                raise ConfigError(
                    "the weights are sharded by DeepSpeed ZeRO-3, which cannot be saved yet; use "
                    "FSDP2 or ZeRO-2"
                )
            sharded, tensor = tensor, whole(tensor)
            if not keep or name.startswith(self.config.leave_out):
                continue
            if sharded is not tensor:
                # In whole it is larger than this rank's memory was meant for.
                tensor = tensor.cpu()
            key = (tensor.data_ptr(), tensor.shape)
            if key not in done or not tensor.numel():
                cast = self.dtype is not None and tensor.is_floating_point()
                done[key] = tensor.to(self.dtype) if cast else tensor
            found[name] = done[key]
        return found

    def _write(
        self,
        model: Any,
        generation: GenerationConfig | None,
        state: dict[str, Tensor],
        folder: Path,
        dtype: torch.dtype | None,
    ) -> None:
        model.save_pretrained(folder, state_dict=state, max_shard_size=self.config.max_shard_size)
        config = copy.deepcopy(model.config)
        for part in (config, config.get_text_config()):
            # Training without a cache must not leave a model that generates without one.
            part.use_cache = True
            if dtype is not None:
                # Else from_pretrained would widen the weights again on loading.
                part.dtype = dtype
        config.save_pretrained(folder)
        if generation is not None:
            values = json.loads(generation.to_json_string(use_diff=True))
            _write_json(folder / "generation_config.json", values | _end_tokens(self.policy))


def _merged_dtype(model: Any) -> torch.dtype:
    """Of the merged weights unless another was asked for: that of the base model's own."""
    dtype: torch.dtype = next(base_of(model).parameters()).dtype
    return dtype if dtype.is_floating_point else torch.float32


def _empty_copy(base: Any) -> Any:
    """The base model without weights and without quantisation: names and config are all that is
    needed of it, and transformers would write a quantised one's own 4-bit numbers."""
    config = copy.deepcopy(base.config)
    quantized = getattr(config, "quantization_config", None) is not None
    if quantized:
        del config.quantization_config
    with torch.device("meta"):
        plain = type(base)(config)
    plain.generation_config = GenerationConfig()
    if not quantized and hasattr(base, "_weight_conversions"):
        # Of models whose names in files are other than in memory.
        plain._weight_conversions = base._weight_conversions
    return plain


@contextmanager
def _left_alone(model: Any) -> Iterator[None]:
    """Put back what transformers changes while it writes, and write without the model's generation
    config, which it refuses when the source checkpoint's has, say, a temperature without
    do_sample: a finished run would be lost."""
    generation = getattr(model, "generation_config", None)
    before = {name: getattr(model.config, name, None) for name in ("dtype", "architectures")}
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = generation
        for name, value in before.items():
            setattr(model.config, name, value)


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
