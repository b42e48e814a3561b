"""Whether vLLM has an adapter as the policy has it: each matrix, its scaling, and all of them.

vLLM leaves out what it finds no place for (``--lora-target-modules``, modules of other names),
loads whatever lies in the folder at that moment, and scales by the configuration that lies there
(0.32.0).
"""

from __future__ import annotations

import importlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_BESIDE = f"{__package__}." if __package__ else ""
_digests: Any = importlib.import_module(f"{_BESIDE}grpo_vllm_digest")

MANIFEST = "grpo-adapter.json"
FILE = "adapter_model.safetensors"
_A = ("lora_A.weight", "lora_embedding_A")
_B = ("lora_B.weight", "lora_embedding_B")


def require_adapter(
    runner: Any, path: str, mark: str, *, known: dict[str, int], loaded: bool
) -> None:
    """Raises ``ValueError`` unless the folder holds the adapter, and vLLM if it is to have it.

    Args:
        runner: vLLM's model runner.
        known: vLLM's own numbers of adapters that were found to be right, by their marks; to be
            kept between calls. One that is new is that which was loaded last.
    """
    tensors, scaling = read_adapter(Path(path), mark)
    if not loaded:
        return
    manager = runner.lora_manager._adapter_manager
    adapters = manager.list_adapters()
    if mark not in known and not adapters:
        raise ValueError("vLLM has no adapter")
    number = known.get(mark, max(adapters, default=0))
    if number in adapters:  # else it made room for another, and is read from the folder when due
        expected = pairs_of(tensors, scaling, runner.lora_config.lora_dtype)
        require_loaded(manager, number, expected)
    known[mark] = number


def require_base(files: Sequence[Path], listed: Mapping[str, tuple[str, str]]) -> None:
    """Raises ``ValueError`` unless a checkpoint holds the weights under the policy's adapter.

    Args:
        files: of the checkpoint.
        listed: dtype and digest of the policy's base, by name; names that are in one of them only
            are not compared.
    """
    import torch
    from safetensors import safe_open

    wrong, seen = [], 0
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in listed.keys() & set(tensors.keys()):
                dtype, known = listed[name]
                seen += 1
                # The policy may have been loaded in another precision than the file's.
                if _digests.digest(tensors.get_tensor(name).to(getattr(torch, dtype))) != known:
                    wrong.append(name)
    if wrong:
        raise ValueError(
            f"{len(wrong)} of {seen} tensors of the server's checkpoint are not those of the "
            f"policy's base, such as {min(wrong)}: it is another model, or another revision"
        )


def read_adapter(folder: Path, mark: str) -> tuple[dict[str, Any], dict[str, float]]:
    """Tensors by their names, and the scaling of each adapted module.

    Raises:
        ValueError: they are not those that the manifest lists.
    """
    from safetensors.torch import load_file

    manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    if manifest["mark"] != mark:
        raise ValueError(f"{folder} holds the adapter {manifest['mark']}, not {mark}")
    tensors: dict[str, Any] = load_file(folder / FILE)
    listed = manifest["tensors"]
    if len(listed) != manifest["count"]:
        raise ValueError(f"the manifest lists {len(listed)} of {manifest['count']} tensors")
    found = {n: [str(t.dtype).removeprefix("torch."), list(t.shape)] for n, t in tensors.items()}
    if found != listed:
        wrong = sorted(n for n in {*found, *listed} if found.get(n) != listed.get(n))
        raise ValueError(
            f"{len(wrong)} of the adapter's {len(listed)} tensors are missing, too many or of "
            f"other shapes or dtypes than the policy's, such as {wrong[0]}"
        )
    wrong = _digests.differing(manifest["digests"], tensors.items())
    if wrong:
        raise ValueError(
            f"{len(wrong)} of the adapter's {len(tensors)} tensors hold other numbers than the "
            f"policy's, such as {wrong[0]}: damaged on the way, exchanged, or of an older version"
        )
    return tensors, manifest["scaling"]


def pairs_of(
    tensors: Mapping[str, Any], scaling: Mapping[str, float], dtype: Any
) -> dict[str, tuple[str, str]]:
    """What vLLM must have for each adapted module of the policy: digests of A, and of B times its
    scaling."""
    found = {}
    for module, factor in scaling.items():
        a, b = (
            next(tensors[f"{module}.{name}"] for name in names if f"{module}.{name}" in tensors)
            for names in (_A, _B)
        )
        scaled = b.to(dtype)
        # As vLLM does it: in its own precision.
        found[module] = (
            _digests.digest(a.to(dtype)),
            _digests.digest(scaled * factor if factor != 1 else scaled),
        )
    return found


def require_loaded(manager: Any, number: int, expected: Mapping[str, tuple[str, str]]) -> None:
    """Raises ``ValueError`` unless an adapter of vLLM's is this one, with a place for each matrix.

    Args:
        manager: vLLM's ``LoRAModelManager``.
        number: of the adapter.
    """
    adapter = manager.list_adapters()[number]
    due = Counter((_numbers(module), *pair) for module, pair in expected.items())
    has = Counter(
        (_numbers(name), _digests.digest(a), _digests.digest(b))
        for name, layer in _layers_in_use(manager, adapter)
        for a, b in _pairs(layer)
        if a is not None
    )
    missing = sorted(m for m, pair in expected.items() if not has[(_numbers(m), *pair)])
    if missing:
        raise ValueError(
            f"{len(missing)} of the adapter's {len(expected)} matrices are not in use in vLLM as "
            f"the policy has them, such as {missing[0]}: not loaded, left out, or scaled otherwise"
        )
    if has != due:
        raise ValueError(f"vLLM's adapter has {has.total()} matrices, the policy's {due.total()}")
    _require_active(manager, number, adapter)


def _numbers(module: str) -> str:
    """Of its layer, which vLLM's names share with PEFT's, whatever else it renames or joins."""
    return ".".join(re.findall(r"[0-9]+", module))


def _layers_in_use(manager: Any, adapter: Any) -> Iterator[tuple[str, Any]]:
    """Those for which vLLM found a module."""
    for name in manager.modules:
        # Its own way to find what belongs to a module, under whichever of its names.
        layer = manager._get_lora_layer_weights(adapter, name)
        if layer:
            yield name, layer


def _pairs(layer: Any) -> list[tuple[Any, Any]]:
    """A and B times its scaling; several where vLLM has made one layer of several (q, k and v)."""
    packed = isinstance(layer.lora_a, list)
    a_s, b_s = (layer.lora_a, layer.lora_b) if packed else ([layer.lora_a], [layer.lora_b])
    factors = layer.scaling if packed else [layer.scaling]
    return [
        (a, b if b is None or factor == 1 else b * factor)
        for a, b, factor in zip(a_s, b_s, factors, strict=True)
    ]


def _require_active(manager: Any, number: int, adapter: Any) -> None:
    """Raises ``ValueError`` unless what vLLM computes with is what it keeps: its list of adapters
    maps the files into memory and changes with them, its buffers are copies."""
    if number not in manager.lora_index_to_id:
        return  # copied when it is asked for
    slot = manager.lora_index_to_id.index(number)
    wrong = []
    for name, layer in _layers_in_use(manager, adapter):
        module, pairs = manager.modules[name], _pairs(layer)
        buffers: tuple[Any, Any] = (
            getattr(module, "lora_a_stacked", None),
            getattr(module, "lora_b_stacked", None),
        )
        if not all(isinstance(b, tuple) and len(b) == len(pairs) for b in buffers):
            continue  # embeddings and experts, which are laid out otherwise
        for kept, stacked, part in zip(
            zip(*pairs, strict=True),
            buffers,
            (module.slice_lora_a, module.slice_lora_b),
            strict=True,
        ):
            due = list(kept)
            if module.tp_size > 1:
                due = part(due) if len(due) > 1 else [part(due[0])]
            for matrix, buffer in zip(due, stacked, strict=True):
                if matrix is None:
                    continue
                used = buffer[slot, 0, : matrix.shape[0], : matrix.shape[1]]
                if not used.cpu().equal(matrix.to(used.dtype).cpu()):
                    wrong.append(name)
    if wrong:
        raise ValueError(
            f"vLLM computes with other matrices than the policy's for {len(set(wrong))} modules, "
            f"such as {min(wrong)}: its files have changed while it loaded them"
        )
