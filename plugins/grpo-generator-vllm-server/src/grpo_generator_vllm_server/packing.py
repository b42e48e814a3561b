"""Weights one after another in buckets of bytes, with a manifest that says where each lies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from grpo_generator_vllm_server.engine.grpo_vllm_contents import ALIGNMENT

if TYPE_CHECKING:
    from torch import Tensor

BUCKET_BYTES = 2**28
"""A tensor that is larger has a bucket to itself."""


class Bucket(Protocol):
    """Memory of a fixed size, all zeros at first."""

    @property
    def size(self) -> int:
        """In bytes."""

    def put(self, offset: int, raw: Tensor) -> None:
        """Copy bytes into it, ``(n,)`` in uint8, from whichever device."""


B = TypeVar("B", bound=Bucket)


@dataclass(frozen=True, kw_only=True)
class Packed(Generic[B]):
    """Weights as they are sent."""

    manifest: dict[str, Any]
    """Count, sizes of the buckets in bytes, for each tensor dtype, shape, bucket, offset, and what
    it holds (``Sent.digests``)."""
    buckets: list[B]


class Own:
    """A bucket in this process's own memory."""

    def __init__(self, size: int) -> None:
        import torch

        self.size = size
        self.bytes = torch.zeros(size, dtype=torch.uint8)

    def put(self, offset: int, raw: Tensor) -> None:
        self.bytes[offset : offset + raw.numel()] = raw


def pack(tensors: Iterator[tuple[str, Tensor]], new: Callable[[int], B]) -> Packed[B]:
    """Put tensors one after another into buckets, which ``new(size)`` makes.

    They are copied, but not at once: they must stay as they are until this returns.
    """
    import torch

    listed: dict[str, tuple[str, list[int], int, int]] = {}
    buckets: list[B] = []
    waiting: list[tuple[int, Tensor]] = []
    end = 0

    def close() -> None:
        nonlocal end
        bucket = new(end)
        for offset, tensor in waiting:
            bucket.put(offset, tensor.reshape(-1).view(torch.uint8))
        buckets.append(bucket)
        waiting.clear()
        end = 0

    for name, tensor in tensors:
        offset = -(-end // ALIGNMENT) * ALIGNMENT
        if waiting and offset + tensor.nbytes > BUCKET_BYTES:
            close()
            offset = 0
        dtype = str(tensor.dtype).removeprefix("torch.")
        listed[name] = (dtype, list(tensor.shape), len(buckets), offset)
        waiting.append((offset, tensor))
        end = offset + tensor.nbytes
    if waiting:
        close()
    sizes = [bucket.size for bucket in buckets]
    return Packed(
        manifest={"count": len(listed), "tensors": listed, "buckets": sizes}, buckets=buckets
    )
