"""The policy's weights as files that a server can check before it takes them over."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from grpo_core.errors import ConfigError, SyncError
from grpo_core.policy import base_of
from grpo_core.staging import staged_folder
from grpo_generator_vllm_server.engine.grpo_vllm_digest import digest

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_core.types import WeightUpdate

MANIFEST = "manifest.json"
"""The same name as in ``engine/grpo_vllm_worker.py``, which stands alone."""
FILE_BYTES = 4 * 2**30
"""Tensors are collected up to this size, so that a large model is never in memory twice."""


@dataclass
class Sent:
    """What a sync has sent, and what the server's precision has taken from it."""

    bytes: int = 0
    tensors: int = 0
    digests: dict[str, str] = field(default_factory=dict)
    """What each tensor of the policy holds, in the precision that is sent; see
    ``engine.grpo_vllm_digest``. Read from the policy's own parameters where they are sent as they
    are, so that a server can tell what is damaged, exchanged or old from what the policy has."""
    rounded: list[float] = field(default_factory=list)
    """Of each tensor that was rounded, the norm of the change over its own norm."""

    def metrics(self) -> dict[str, float]:
        found = {"sync/bytes": float(self.bytes)}
        if self.rounded:
            found["sync/rounding_max"] = max(self.rounded)
            found["sync/rounding_mean"] = sum(self.rounded) / len(self.rounded)
        return found


def sent_tensors(
    update: WeightUpdate, dtype: str | None, sent: Sent
) -> Iterator[tuple[str, Tensor]]:
    """All weights as they travel, a tied head by its own name too, which may be the same memory.

    Args:
        dtype: what the server computes in: wider weights are rounded to it here, as it would, and
            half the bytes travel. ``None`` leaves them as they are.
        sent: is told of each.
    """
    import torch

    target = None if dtype is None else cast("torch.dtype", getattr(torch, dtype))
    own = own_parameters(update.model)
    for name, tensor in with_head(update):
        kept = tensor.detach()
        if target and kept.is_floating_point() and kept.element_size() > target.itemsize:
            rounded = kept.to(target)
            norm = float(kept.norm())
            if norm:
                sent.rounded.append(float((rounded.to(kept.dtype) - kept).norm()) / norm)
            kept = rounded
        sent.tensors += 1
        sent.bytes += kept.nbytes
        policys = own.get(name, tensor)
        if policys.shape != tensor.shape:
            policys = tensor  # which the shapes will tell
        sent.digests[name] = digest(policys.to(kept.dtype))
        yield name, kept


def own_parameters(model: Any) -> dict[str, Tensor]:
    """The policy's own parameters that are sent as they are, by the names that they are sent under:
    none that are merged, gathered from ranks or unpacked on the way."""
    return {
        name: parameter
        for name, parameter in base_of(model).named_parameters(remove_duplicate=False)
        if ".base_layer." not in name
        and not hasattr(parameter, "full_tensor")
        and parameter.is_floating_point()
    }


def require_own(update: WeightUpdate) -> Iterator[tuple[str, Tensor]]:
    """All weights, a tied head too, each compared with the policy's own; free where it is that.

    Raises:
        SyncError: one holds something else.
    """
    own = own_parameters(update.model)
    for name, tensor in with_head(update):
        policys = own.get(name, tensor)
        if policys.data_ptr() != tensor.data_ptr() and digest(policys) != digest(tensor):
            raise SyncError(
                f"{name} is about to be given away with other numbers than the policy's: "
                "exchanged, or of an older version"
            )
        yield name, tensor


def write_weights(folder: Path, update: WeightUpdate, dtype: str | None) -> Sent:
    """Write all weights and their manifest; ``folder`` is complete or absent. ``dtype`` as in
    ``sent_tensors``."""
    from safetensors.torch import save_file

    sent = Sent()
    listed: dict[str, tuple[str, list[int]]] = {}
    files: dict[str, int] = {}
    with staged_folder(folder, durable=False) as staging:
        for shard in _shards(sent_tensors(update, dtype, sent)):
            name = f"weights-{len(files):05d}.safetensors"
            save_file(shard, staging / name)
            files[name] = (staging / name).stat().st_size
            for key, tensor in shard.items():
                listed[key] = (str(tensor.dtype).removeprefix("torch."), list(tensor.shape))
        manifest = {
            "mark": folder.name,
            "policy_version": update.policy_version,
            "count": len(listed),
            "files": files,
            "tensors": listed,
            "digests": sent.digests,
        }
        (staging / MANIFEST).write_text(json.dumps(manifest), "utf-8")
    return sent


def with_head(update: WeightUpdate) -> Iterator[tuple[str, Tensor]]:
    """All weights, and a tied head under its own name too.

    With tied embeddings the head is no parameter of its own, but vLLM may keep a repacked copy (on
    CPUs it does), which stays old unless it is named.

    Raises:
        ConfigError: head and embedding are tied, but adapters make them two.
    """
    base = base_of(update.model)
    if two := tied_and_adapted(base):
        raise ConfigError(f"vLLM cannot hold this policy: {two}")
    seen: dict[str, Tensor] = {}
    head = base.get_output_embeddings()
    name = next((f"{n}.weight" for n, m in base.named_modules() if m is head), None)
    for key, tensor in update.named_tensors():
        if name is not None and key in (name, _embedding_name(base)):
            seen[key] = tensor
        yield key, tensor
    if name is not None and name not in seen and getattr(base.config, "tie_word_embeddings", False):
        yield name, seen[_embedding_name(base)]


def tied_and_adapted(base: Any) -> str | None:
    """Where one matrix serves as embedding and head, an adapter on either makes them two, and vLLM
    has one."""
    if not getattr(base.config, "tie_word_embeddings", False):
        return None
    ends = {"embeddings": base.get_input_embeddings(), "head": base.get_output_embeddings()}
    adapted = [name for name, module in ends.items() if hasattr(module, "base_layer")]
    if not adapted:
        return None
    return f"an adapter is on its {' and '.join(adapted)}, which are tied to each other"


def _embedding_name(base: Any) -> str:
    embedding = base.get_input_embeddings()
    return next(f"{n}.weight" for n, m in base.named_modules() if m is embedding)


def _shards(tensors: Iterator[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors:
        # A copy, as two names may share their memory, which the format does not allow.
        shard[name] = tensor.to("cpu", copy=True).contiguous()
        size += tensor.nbytes
        if size >= FILE_BYTES:
            yield shard
            shard, size = {}, 0
    if shard:
        yield shard


if TYPE_CHECKING:
    import torch
