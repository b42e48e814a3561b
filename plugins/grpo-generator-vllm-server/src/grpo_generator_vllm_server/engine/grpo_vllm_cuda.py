"""The functions of NVIDIA's driver that share a GPU's memory between processes.

By its documented C interface (CUDA Driver API, "Memory Management"), not by torch, whose exports
take memory from its caching allocator, where `expandable_segments` are shared by file descriptors
that containers forbid, and count references in a file in /dev/shm: a killed trainer leaves it
behind, and for a killed server the trainer would keep the memory for good.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

HANDLE_BYTES = 64
"""``CU_IPC_HANDLE_SIZE``."""
_LAZY_PEER_ACCESS = 1
"""``CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS``, the only flag there is."""
_OUT_OF_MEMORY = 2


class CudaError(RuntimeError):
    """The driver has refused; the message says what and why."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.out_of_memory = code == _OUT_OF_MEMORY


class _Handle(ctypes.Structure):
    _fields_ = [("reserved", ctypes.c_ubyte * HANDLE_BYTES)]


_Pointer = ctypes.c_uint64
"""``CUdeviceptr`` on 64-bit machines."""
_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "cuGetErrorName": (ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)),
    "cuMemAlloc_v2": (ctypes.POINTER(_Pointer), ctypes.c_size_t),
    "cuMemFree_v2": (_Pointer,),
    "cuMemcpyAsync": (_Pointer, _Pointer, ctypes.c_size_t, ctypes.c_void_p),
    "cuIpcGetMemHandle": (ctypes.POINTER(_Handle), _Pointer),
    "cuIpcOpenMemHandle_v2": (ctypes.POINTER(_Pointer), _Handle, ctypes.c_uint),
    "cuIpcCloseMemHandle": (_Pointer,),
}


@contextmanager
def on(device: Any) -> Iterator[None]:
    """Every function below must be called within this: the driver works in the thread's current
    context, which torch's first call makes current. What the GPU had to do is done on entry."""
    import torch

    with torch.cuda.device(device):
        torch.cuda.synchronize()
        yield


def allocate(size: int) -> int:
    """Address of new memory of the current device.

    Raises:
        CudaError: there is not so much, for instance.
    """
    address = _Pointer()
    _call("cuMemAlloc_v2", ctypes.byref(address), size)
    return int(address.value)


def free(address: int) -> None:
    """Give memory back. While another process has it open, what that one reads is undefined."""
    _call("cuMemFree_v2", address)


def copy(target: int, source: int, size: int) -> None:
    """From address to address, also of another GPU, in the order of torch's current stream."""
    import torch

    _call("cuMemcpyAsync", target, source, size, torch.cuda.current_stream().cuda_stream)


def export(address: int) -> bytes:
    """The handle by which other processes of this machine open what ``allocate`` returned."""
    handle = _Handle()
    _call("cuIpcGetMemHandle", ctypes.byref(handle), address)
    return bytes(handle)


def open_handle(handle: bytes) -> int:
    """Address, in this process, of another process's memory; on another GPU, peer to peer.

    Raises:
        ValueError: it is not of ``HANDLE_BYTES`` bytes.
        CudaError: it is no such handle, or not to be reached from the current device.
    """
    address = _Pointer()
    found = _Handle.from_buffer_copy(handle)
    _call("cuIpcOpenMemHandle_v2", ctypes.byref(address), found, _LAZY_PEER_ACCESS)
    return int(address.value)


def close_handle(address: int) -> None:
    """Once for each ``open_handle``."""
    _call("cuIpcCloseMemHandle", address)


def _call(name: str, *arguments: Any) -> None:
    library = _library()
    code = int(getattr(library, name)(*arguments))
    if code:
        said = ctypes.c_char_p()
        library.cuGetErrorName(code, ctypes.byref(said))
        shown = said.value.decode() if said.value else "unknown error"
        raise CudaError(f"{name}: {shown} ({code})", code)


@functools.cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise RuntimeError(f"NVIDIA's driver cannot be loaded: {error}") from error
    for name, types in _FUNCTIONS.items():
        function = getattr(library, name)
        function.argtypes, function.restype = types, ctypes.c_int
    return library
