"""Memory of a trainer on the same machine, opened by the handles that it sends.

A handle is JSON: whole numbers, and text of fixed length. Nothing of it is executed or unpickled,
and behind every bucket stands a key, so that memory that is not the trainer's, or no longer, is
refused before anything is made of it.
"""

from __future__ import annotations

import base64
import contextlib
import hmac
import importlib
import mmap
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

_BESIDE = f"{__package__}." if __package__ else ""
cuda: Any = importlib.import_module(f"{_BESIDE}grpo_vllm_cuda")

KEY_BYTES = 16
SEALS = 0b1110
"""Linux's ``F_SEAL_SHRINK``, ``GROW`` and ``WRITE``, of memory that nobody can change any more:
what is read is what was checked, and no read ends this process because the file is shorter."""

TOGETHER = (
    "trainer and server must run on one machine, in one container (or with --pid=host), as the "
    "same user"
)

Handle = Mapping[str, Any]
"""Example: ``{"kind": "host", "key": "00" * 16, "size": 4096, "pid": 8, "fd": 5, "start": 0}`` or
``{"kind": "cuda", "key": ..., "size": 4096, "device": "GPU-6f2c...", "handle": "base64..."}``."""


class Bucket(Protocol):
    """Memory of another process."""

    def __getitem__(self, part: slice) -> Any:
        """Bytes from ``start`` to ``stop``, ``(stop - start,)`` in uint8."""

    def close(self) -> None:
        """Nothing of it is read any more."""


def open_all(handles: Sequence[Handle], sizes: Sequence[int], device: Any) -> list[Bucket]:
    """All buckets of a manifest, or none.

    Raises:
        ValueError: handles and sizes do not belong together, or one is not the trainer's memory.
    """
    if len(handles) != len(sizes):
        raise ValueError(f"there are {len(handles)} handles for {len(sizes)} buckets")
    opened: list[Bucket] = []
    try:
        for handle, size in zip(handles, sizes, strict=True):
            opened.append(open_bucket(handle, size, device))
    except BaseException:
        close_all(opened)
        raise
    return opened


def close_all(buckets: Sequence[Any]) -> None:
    """Those that were received, over a process group, are memory of this process."""
    for bucket in buckets:
        if hasattr(bucket, "close"):
            bucket.close()


def open_bucket(handle: Handle, size: int, device: Any) -> Bucket:
    """One bucket of ``size`` bytes.

    Args:
        device: of this worker; memory of a GPU is copied to it.

    Raises:
        ValueError: see ``open_all``.
    """
    kinds: dict[object, Callable[..., Bucket]] = {"host": HostBucket, "cuda": CudaBucket}
    kind = handle.get("kind") if isinstance(handle, Mapping) else None
    if kind not in kinds:
        raise ValueError(f"a handle of kind {kind!r} is neither host nor cuda")
    if _field(handle, "size", int) != size:
        raise ValueError(f"a handle of {handle['size']} bytes is none of a bucket of {size}")
    key = bytes.fromhex(_field(handle, "key", str))
    if len(key) != KEY_BYTES:
        raise ValueError(f"a key has {KEY_BYTES} bytes, not {len(key)}")
    return kinds[kind](handle, size, key, device)


class HostBucket:
    """Memory of the host: an anonymous, sealed file of the trainer, mapped and not copied.

    It has no name in any folder, so nothing of it is left when the last process that has it open
    ends, however it ends.
    """

    def __init__(self, handle: Handle, size: int, key: bytes, device: Any) -> None:
        import fcntl

        import torch

        pid, fd, start = (_field(handle, name, int) for name in ("pid", "fd", "start"))
        path = f"/proc/{pid}/fd/{fd}"
        try:
            # Without waiting for the other end, should it be a pipe.
            opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise ValueError(
                f"the trainer's memory, {path}, cannot be opened ({error.strerror}): {TOGETHER}"
            ) from error
        try:
            seals = 0
            with contextlib.suppress(OSError):  # no file that can be sealed
                seals = fcntl.fcntl(opened, fcntl.F_GET_SEALS)
            if seals & SEALS != SEALS:
                raise ValueError(f"{path} is not the trainer's memory, which is sealed: {TOGETHER}")
            if os.fstat(opened).st_size < start + size + KEY_BYTES:
                raise ValueError(f"{path} ends before byte {start + size + KEY_BYTES}")
            # Should the reload change what it is given, then in a copy of the page.
            mapped = mmap.mmap(opened, size + KEY_BYTES, offset=start, access=mmap.ACCESS_COPY)
        finally:
            os.close(opened)
        _require_key(mapped[size:], key, path)
        self._bytes: Any = torch.frombuffer(mapped, dtype=torch.uint8, count=size)

    def __getitem__(self, part: slice) -> Any:
        return self._bytes[part]

    def close(self) -> None:
        self._bytes = None  # unmapped with the last view of it


class CudaBucket:
    """Memory of a GPU, by CUDA IPC.

    Each part is copied when it is asked for: a view would show what the trainer later does there,
    if the engine kept it, and from another GPU would be read over the bus again and again.
    """

    def __init__(self, handle: Handle, size: int, key: bytes, device: Any) -> None:
        raw = base64.b64decode(_field(handle, "handle", str), validate=True)
        theirs = _field(handle, "device", str)
        if len(raw) != cuda.HANDLE_BYTES:
            raise ValueError(f"a CUDA handle has {cuda.HANDLE_BYTES} bytes, not {len(raw)}")
        _require_peer(theirs, device)
        self._device = device
        with cuda.on(device):
            try:
                self._address: int | None = cuda.open_handle(raw)
            except cuda.CudaError as error:
                raise ValueError(
                    f"memory of the trainer's GPU {theirs} cannot be opened from {_uuid(device)}: "
                    f"{error}; {TOGETHER}, and on GPUs that reach each other"
                ) from error
        try:
            _require_key(bytes(self[size : size + KEY_BYTES].tolist()), key, f"GPU {theirs}")
        except BaseException:
            self.close()
            raise

    def __getitem__(self, part: slice) -> Any:
        import torch

        if self._address is None:
            raise RuntimeError("the trainer's memory has been closed")
        size = part.stop - part.start
        with torch.cuda.device(self._device):
            found = torch.empty(size, dtype=torch.uint8, device=self._device)
            cuda.copy(found.data_ptr(), self._address + part.start, size)
        return found

    def close(self) -> None:
        address, self._address = self._address, None
        if address is not None:
            with cuda.on(self._device):  # which waits for the copies
                cuda.close_handle(address)


def _field(handle: Handle, name: str, kind: type[Any]) -> Any:
    value: Any = handle.get(name)
    # Not isinstance: True is an int.
    if type(value) is not kind or (isinstance(value, int) and value < 0):
        raise ValueError(f"the handle's {name} is {value!r}, which is none")
    return value


def _require_key(found: bytes, key: bytes, where: str) -> None:
    if not hmac.compare_digest(found, key):
        raise ValueError(f"{where} does not hold the weights that the trainer has sent")


def _require_peer(theirs: str, device: Any) -> None:
    """Raises ``ValueError`` if their GPU can be seen from here, but not be read.

    By identity: what is GPU 0 here may be another there, by CUDA_VISIBLE_DEVICES. One that cannot
    be seen may be reached all the same, which only opening its memory shows.
    """
    import torch

    index = torch.device(device).index
    own: int = torch.cuda.current_device() if index is None else index
    for other in range(torch.cuda.device_count()):
        if (
            other != own
            and _uuid(other) == theirs
            and not torch.cuda.can_device_access_peer(own, other)
        ):
            raise ValueError(
                f"GPU {_uuid(own)} of the server cannot read the memory of the trainer's {theirs} "
                "(no peer access between them); set generator.ipc_memory to host"
            )


def _uuid(device: Any) -> str:
    import torch

    return str(torch.cuda.get_device_properties(device).uuid)
