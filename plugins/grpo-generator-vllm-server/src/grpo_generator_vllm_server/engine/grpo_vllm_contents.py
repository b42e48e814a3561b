"""What weights must be before a model takes them: as listed, as many, where they are said to lie,
and holding what the policy's hold."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

_BESIDE = f"{__package__}." if __package__ else ""
_digests: Any = importlib.import_module(f"{_BESIDE}grpo_vllm_digest")

MANIFEST = "manifest.json"
HEAD = "lm_head.weight"

ALIGNMENT = 64
"""Every tensor begins at a multiple of so many bytes of its bucket."""

Shapes = dict[str, list[int]]


def require_layout(manifest: Mapping[str, Any]) -> None:
    """Raises ``ValueError`` unless tensors and buckets fit together, byte for byte."""
    import torch

    tensors, sizes = manifest["tensors"], manifest["buckets"]
    if len(tensors) != manifest["count"]:
        raise ValueError(f"the manifest lists {len(tensors)} of {manifest['count']} tensors")
    ends = [0] * len(sizes)
    for name, (dtype, shape, bucket, offset) in tensors.items():
        kind = getattr(torch, dtype, None)
        if not isinstance(kind, torch.dtype):
            raise ValueError(f"{name} has dtype {dtype!r}, which is none")
        if not 0 <= bucket < len(sizes) or offset % ALIGNMENT or offset < ends[bucket]:
            raise ValueError(f"{name} lies at byte {offset} of bucket {bucket}, over another")
        ends[bucket] = offset + torch.Size(shape).numel() * kind.itemsize
        if ends[bucket] > sizes[bucket]:
            raise ValueError(f"{name} ends beyond its bucket of {sizes[bucket]} bytes")


def unpack(manifest: Mapping[str, Any], buckets: list[Any]) -> Iterator[tuple[str, Any]]:
    """The tensors, as views of the buckets."""
    import torch

    for name, (dtype, shape, bucket, offset) in manifest["tensors"].items():
        kind = getattr(torch, dtype)
        size = torch.Size(shape).numel() * kind.itemsize
        yield name, buckets[bucket][offset : offset + size].view(kind).view(shape)


def read_complete(folder: Path, mark: str | None = None, device: Any = None) -> dict[str, Any]:
    """All tensors of a folder, compared with its manifest.

    Raises:
        ValueError: a file, name, shape, dtype, the count or what a tensor holds is another than the
            manifest says, or the manifest is that of other weights than ``mark``.
    """
    from safetensors.torch import load_file

    manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    if mark is not None and manifest["mark"] != mark:
        raise ValueError(f"{folder} holds the weights {manifest['mark']}, not {mark}")
    tensors: dict[str, Any] = {}
    for name, size in manifest["files"].items():
        file = folder / name
        if file.stat().st_size != size:
            raise ValueError(f"{file} has {file.stat().st_size} bytes, the manifest says {size}")
        tensors.update(load_file(file))
    listed = {name: (dtype, shape) for name, (dtype, shape) in manifest["tensors"].items()}
    if len(listed) != manifest["count"]:
        raise ValueError(f"the manifest lists {len(listed)} of {manifest['count']} tensors")
    require_same(
        {name: shape for name, (_, shape) in listed.items()},
        {name: list(tensor.shape) for name, tensor in tensors.items()},
        optional=(),
        has="the manifest lists",
    )
    for name, tensor in tensors.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype != listed[name][0]:
            raise ValueError(f"{name} is {dtype}, the manifest says {listed[name][0]}")
    require_contents(manifest, tensors.items(), device)
    return tensors


def require_contents(
    manifest: Mapping[str, Any], tensors: Iterable[tuple[str, Any]], device: Any = None
) -> None:
    """Raises ``ValueError`` unless each tensor holds what the trainer's has.

    Args:
        device: where the model is: a GPU reads them in less time than a processor.
    """
    there = ((name, tensor.to(device or tensor.device)) for name, tensor in tensors)
    wrong = _digests.differing(manifest["digests"], there)
    if wrong:
        raise ValueError(
            f"{len(wrong)} of {manifest['count']} tensors hold other numbers than the policy's, "
            f"such as {wrong[0]}: damaged on the way, exchanged, or of an older version"
        )


def require_same(
    expected: Mapping[str, list[int]],
    found: Mapping[str, list[int]],
    *,
    optional: tuple[str, ...] = (HEAD,),
    has: str = "the server's model has",
) -> None:
    """Raises ``ValueError`` unless names and shapes are equal; a tied head may be named or not."""
    missing = sorted(expected.keys() - found.keys() - set(optional))
    unknown = sorted(found.keys() - expected.keys() - set(optional))
    if missing or unknown:
        raise ValueError(
            f"other tensors than {has}: {len(missing)} missing {missing[:3]}, "
            f"{len(unknown)} unknown {unknown[:3]}"
        )
    wrong = [n for n in expected.keys() & found.keys() if list(expected[n]) != list(found[n])]
    if wrong:
        name = min(wrong)
        raise ValueError(
            f"{len(wrong)} tensors have other shapes than {has}, such as {name}: "
            f"{found[name]}, not {expected[name]}; is it another base model?"
        )


def checkpoint_files(model: str, revision: str | None) -> list[Path]:
    """A checkpoint's safetensors files; none where it has none."""
    folder = Path(model)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            # Already there, since the server has loaded it; nothing is downloaded here.
            folder = Path(snapshot_download(model, revision=revision, local_files_only=True))
        except Exception:
            return []
    found = sorted(folder.glob("*.safetensors"))
    return [file for file in found if os.path.getsize(file) and not file.name.startswith("adapter")]


def checkpoint_shapes(model: str, revision: str | None) -> Shapes | None:
    """From the headers of a checkpoint's safetensors files; ``None`` where there are none."""
    from safetensors import safe_open

    shapes: Shapes = {}
    for file in checkpoint_files(model, revision):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                shapes[name] = list(tensors.get_slice(name).get_shape())
    return shapes or None
