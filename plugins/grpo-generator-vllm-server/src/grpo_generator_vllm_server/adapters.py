"""LoRA adapters as servers get them: whether one alone is the whole difference, and its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from grpo_core.errors import SyncError
from grpo_core.policy import base_of
from grpo_core.staging import staged_folder
from grpo_generator_vllm_server.engine.grpo_vllm_adapter import MANIFEST
from grpo_generator_vllm_server.engine.grpo_vllm_digest import digest
from grpo_generator_vllm_server.weights import Sent, tied_and_adapted

if TYPE_CHECKING:
    from grpo_core.types import WeightUpdate

ADAPTER = "default"
"""The one that PEFT makes first; the only one that is sent."""


def adapter_rank(update: WeightUpdate) -> int | None:
    """Largest rank of the policy's adapters; ``None`` where it has none."""
    configs = getattr(update.model, "peft_config", None)
    if not configs:
        return None
    return (
        max(
            int(rank)
            for config in configs.values()
            for rank in (
                getattr(config, "r", 0),
                *(getattr(config, "rank_pattern", None) or {}).values(),
            )
        )
        or None
    )


def obstacle(model: Any) -> str | None:
    """Why the adapter alone would not make vLLM's model that of the trainer; ``None``: it would."""
    active = list(getattr(model, "active_adapters", ()))
    if active != [ADAPTER]:
        return f"its active adapters are {active}, not the one that PEFT calls {ADAPTER}"
    config = model.peft_config[ADAPTER]
    for name in ("use_dora", "lora_bias", "modules_to_save", "layer_replication"):
        if getattr(config, name, None):
            return f"it has {name}, which is more than LoRA's matrices"
    for name in ("alora_invocation_tokens", "trainable_token_indices", "target_parameters"):
        if getattr(config, name, None):
            return f"it has {name}, which vLLM does not compute"
    if getattr(config, "bias", "none") != "none":
        return "it trains biases"
    if not isinstance(getattr(config, "init_lora_weights", True), bool):
        return f"init_lora_weights is {config.init_lora_weights!r}, which changes the base"
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and ".lora_" not in name:
            return f"{name} is trained, too"
    base = base_of(model)
    if any(hasattr(p, "full_tensor") for p in base.parameters()):
        return "its matrices are spread over the ranks"
    if any(getattr(m, "merged", False) for m in base.modules()):
        return "it is merged into the base at the moment"
    if any(getattr(m, "disable_adapters", False) is True for m in base.modules()):
        return "it is switched off at the moment"
    return tied_and_adapted(base)


def write_adapter(folder: Path, update: WeightUpdate) -> Sent:
    """Write the LoRA adapter alone, in PEFT's format, with a manifest that is read from the policy;
    ``folder`` is complete or absent.

    Raises:
        SyncError: since the way was chosen, something has come that is more than this adapter.
    """
    if more := obstacle(update.model):
        raise SyncError(f"the policy's adapter alone is no longer all that is trained: {more}")
    with staged_folder(folder, durable=False) as staging:
        # "auto" would ask the Hub whether the vocabulary has grown.
        cast("Any", update.model).save_pretrained(staging, save_embedding_layers=False)
        manifest = adapter_manifest(folder.name, update)
        (staging / MANIFEST).write_text(json.dumps(manifest), "utf-8")
    return Sent(
        bytes=sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        tensors=len(manifest["tensors"]),
        digests=manifest["digests"],
    )


def base_digests(model: Any) -> dict[str, tuple[str, str]]:
    """Dtype and digest of each of the base's own parameters, by its name in a checkpoint; without
    those that are quantised, which no checkpoint holds in that form."""
    return {
        name.replace(".base_layer.", "."): (str(p.dtype).removeprefix("torch."), digest(p))
        for name, p in base_of(model).named_parameters()
        if ".lora_" not in name and p.is_floating_point()
    }


def adapter_manifest(mark: str, update: WeightUpdate) -> dict[str, Any]:
    """Names as in PEFT's file, dtypes, shapes and digests of the matrices, and each module's
    scaling, which is not in any tensor (alpha, rank, rsLoRA)."""
    model = update.model
    matrices = {
        name.replace(f".{ADAPTER}", ""): parameter
        for name, parameter in model.named_parameters()
        if ".lora_" in name and f".{ADAPTER}" in name
    }
    return {
        "mark": mark,
        "policy_version": update.policy_version,
        "count": len(matrices),
        "tensors": {
            name: [str(p.dtype).removeprefix("torch."), list(p.shape)]
            for name, p in matrices.items()
        },
        "digests": {name: digest(p) for name, p in matrices.items()},
        "scaling": {
            name: float(cast("Any", module).scaling[ADAPTER])
            for name, module in model.named_modules()
            # Attention has a scaling of its own.
            if hasattr(module, "lora_A") and ADAPTER in cast("Any", module).scaling
        },
    }
