"""Memory that other processes of this machine can open: the trainer's half of ``sync: ipc``.

What opens it is ``engine/grpo_vllm_memory.py``.
"""

from __future__ import annotations

import base64
import mmap
import os
import secrets
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, Protocol

from grpo_core.errors import ConfigError
from grpo_generator_vllm_server.engine import grpo_vllm_cuda as cuda
from grpo_generator_vllm_server.engine.grpo_vllm_memory import KEY_BYTES, SEALS, Handle
from grpo_generator_vllm_server.errors import PushError
from grpo_generator_vllm_server.packing import Bucket

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MemoryName = Literal["host", "cuda"]
CUDA_PAGE = 2**21
"""Smaller allocations lie in one page, which would be shared as a whole (CUDA Programming Guide,
"Interprocess Communication")."""


class SharedBucket(Bucket, Protocol):
    """A bucket with a key behind it, by which whoever opens it knows it again."""

    def handle(self) -> Handle:
        """What others open it by."""


class SharedMemory(Protocol):
    """Buckets to fill, then to share."""

    def new(self, size: int) -> SharedBucket:
        """A bucket for ``size`` bytes."""

    def share(self) -> None:
        """From here on handles may be sent, and nothing may change."""

    def close(self) -> None:
        """Free the memory; whoever still reads it in the host's memory keeps it."""


class HostMemory:
    """One anonymous file in the host's memory (``memfd_create``, Linux).

    It has no name in /dev/shm or elsewhere, is not bound by the size of that folder, and can be
    opened only by processes that may trace this one: those of the same user.

    Raises:
        ConfigError: the system has no such files.
    """

    def __init__(self) -> None:
        if not hasattr(os, "memfd_create"):
            raise ConfigError("generator.sync is 'ipc', which needs Linux; use file or broadcast")
        self.fd = os.memfd_create("grpo-weights", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._end = 0
        self._free = weakref.finalize(self, os.close, self.fd)

    def new(self, size: int) -> HostBucket:
        start = self._end
        pages = -(-(size + KEY_BYTES) // mmap.ALLOCATIONGRANULARITY)
        self._end += pages * mmap.ALLOCATIONGRANULARITY
        os.ftruncate(self.fd, self._end)
        return HostBucket(self.fd, start, size)

    def share(self) -> None:
        import fcntl

        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, SEALS | fcntl.F_SEAL_SEAL)

    def close(self) -> None:
        self._free()


class HostBucket:
    """A part of a file in memory."""

    def __init__(self, fd: int, start: int, size: int) -> None:
        self.size = size
        self._fd, self._start = fd, start
        self._key = secrets.token_bytes(KEY_BYTES)
        os.pwrite(fd, self._key, start + size)

    def put(self, offset: int, raw: Tensor) -> None:
        # Not through a mapping, whose pages are cleared before they are written: half the time.
        left, at = raw.cpu().numpy().data, self._start + offset
        while left:
            written = os.pwrite(self._fd, left, at)
            left, at = left[written:], at + written

    def handle(self) -> Handle:
        return {
            "kind": "host",
            "key": self._key.hex(),
            "size": self.size,
            "pid": os.getpid(),
            "fd": self._fd,
            "start": self._start,
        }


class CudaMemory:
    """Buckets in the memory of a GPU, each of them one allocation by the driver.

    Args:
        device: where the policy is.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buckets: list[CudaBucket] = []

    def new(self, size: int) -> CudaBucket:
        self._buckets.append(CudaBucket(self._device, size))
        return self._buckets[-1]

    def share(self) -> None:
        # Other processes do not wait for this one's streams: everything must be there.
        with cuda.on(self._device):
            pass

    def close(self) -> None:
        for bucket in self._buckets:
            bucket.close()


class CudaBucket:
    """An allocation with a handle.

    Raises:
        PushError: the GPU has no room for it.
    """

    def __init__(self, device: torch.device, size: int) -> None:
        import torch

        self.size = size
        self._device = device
        self._key = secrets.token_bytes(KEY_BYTES)
        with cuda.on(device):
            self._address = _allocate(-(-(size + KEY_BYTES) // CUDA_PAGE) * CUDA_PAGE)
            self.close = weakref.finalize(self, _free, device, self._address)
            self.close.atexit = False  # the driver ends first, and takes it
            self._handle = cuda.export(self._address)
        self.put(size, torch.frombuffer(bytearray(self._key), dtype=torch.uint8))

    def put(self, offset: int, raw: Tensor) -> None:
        import torch

        with torch.cuda.device(self._device):
            # On the device, where the policy may not be as a whole; kept by torch until its stream
            # has come so far.
            there = raw.to(self._device)
            cuda.copy(self._address + offset, there.data_ptr(), there.numel())

    def handle(self) -> Handle:
        import torch

        return {
            "kind": "cuda",
            "key": self._key.hex(),
            "size": self.size,
            "device": str(torch.cuda.get_device_properties(self._device).uuid),
            "handle": base64.b64encode(self._handle).decode(),
        }


def _allocate(size: int) -> int:
    import torch

    try:
        return cuda.allocate(size)
    except cuda.CudaError as error:
        if not error.out_of_memory:
            raise
    torch.cuda.empty_cache()  # what torch keeps for later is not free to others
    try:
        return cuda.allocate(size)
    except cuda.CudaError as error:
        if not error.out_of_memory:
            raise
        raise PushError(
            f"the trainer's GPU has no room for another {size:,} bytes: sync: ipc keeps a copy of "
            "the weights there. Set generator.ipc_memory to host, or generator.sync to file"
        ) from error


def _free(device: torch.device, address: int) -> None:
    with cuda.on(device):
        cuda.free(address)


def memory_of(name: MemoryName, device: torch.device) -> SharedMemory:
    """New memory of the host, or of the policy's GPU."""
    made: dict[str, Callable[[], SharedMemory]] = {
        "host": HostMemory,
        "cuda": lambda: CudaMemory(device),
    }
    return made[name]()
