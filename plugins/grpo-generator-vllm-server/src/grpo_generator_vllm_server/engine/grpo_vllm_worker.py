"""Worker extension for `vllm serve --worker-extension-cls`: weights from a folder, over a process
group, or in memory that is shared, all or none.

vLLM's own reload takes what it is given: a partial stream is accepted with a warning, a wrong shape
leaves the engine broken for good, and with tied embeddings on a CPU the head stays old unless it is
sent by name (0.32.0). So everything is checked and read here before the reload begins.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
HEAD = "lm_head.weight"

ALIGNMENT = 64
"""Every tensor begins at a multiple of so many bytes of its bucket."""

Shapes = dict[str, list[int]]
Answer = dict[str, Any]


class GRPOWorker:
    """Methods that vLLM adds to each of its workers; called through `/collective_rpc`.

    Failures come back as ``{"error": ...}``: an exception would reach the client as a bare 500.
    """

    model_runner: Any
    vllm_config: Any
    rank: int
    device: Any
    reload_weights: Any
    """These five are the worker's own."""
    _grpo_group: Any
    _grpo_manifest: dict[str, Any] | None
    _grpo_buckets: list[Any]

    def grpo_held(self) -> dict[str, Any]:
        """Which weights this worker has, and facts of the engine."""
        config = self.vllm_config
        lora = config.lora_config
        return {
            "rank": self.rank,
            "held": getattr(self, "_grpo_held", None),
            "broken": getattr(self, "_grpo_broken", None),
            "model": str(config.model_config.model),
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
            "logprobs_mode": str(config.model_config.logprobs_mode),
            "max_model_len": int(config.model_config.max_model_len),
            "vocabulary": int(config.model_config.get_vocab_size()),
            "lora_rank": int(lora.max_lora_rank) if lora else 0,
            "device": str(config.device_config.device_type),
        }

    def grpo_sees(self, path: str, text: str) -> dict[str, Any]:
        """Whether a file is here as well, with this text."""
        try:
            return {"sees": Path(path).read_text("utf-8") == text}
        except (OSError, UnicodeDecodeError):
            return {"sees": False}

    def grpo_load(self, path: str, mark: str) -> Answer:
        """Take over the weights in ``path``; ``mark`` is what ``grpo_held`` then says."""

        def read() -> Iterable[tuple[str, Any]]:
            tensors = read_complete(Path(path))
            self._grpo_require_fit({n: list(t.shape) for n, t in tensors.items()})
            return tensors.items()

        return self._grpo_take_over(read, mark)

    # -- over a process group: expect, join, receive each bucket, apply; in shared memory: expect,
    # -- open, apply -----------------------------------------------------------------------------

    def grpo_expect(self, manifest: dict[str, Any]) -> Answer:
        """Compare what will be sent with the model, before anything is sent."""
        self.grpo_drop()
        try:
            require_layout(manifest)
            self._grpo_require_fit({n: t[1] for n, t in manifest["tensors"].items()})
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}", "applied": False}
        self._grpo_manifest = manifest
        return {"ready": True}

    def grpo_join(
        self, host: str, port: int, name: str, world: int, backend: str, limit: float
    ) -> Answer:
        """Enter the group whose rank 0 is the trainer."""
        try:
            self._grpo_group = join(
                (host, port), name, self.rank + 1, world, backend, limit, listening=None
            )
        except Exception as error:
            self.grpo_drop()
            return {"error": f"{type(error).__name__}: {error}", "applied": False}
        return {"joined": True}

    def grpo_receive(self, number: int) -> Answer:
        """Receive one bucket into memory; the model stays as it is."""
        import torch

        manifest = getattr(self, "_grpo_manifest", None)
        group = getattr(self, "_grpo_group", None)
        try:
            if manifest is None or group is None or len(self._grpo_buckets) != number:
                raise RuntimeError(f"bucket {number} is not what is due")
            size = manifest["buckets"][number]
            cuda = str(self.vllm_config.device_config.device_type) == "cuda"
            on = "cuda" if cuda and "NCCL" in type(group).__name__ else "cpu"
            bucket = torch.empty(size, dtype=torch.uint8, device=on)
            broadcast(group, bucket)
            # Kept in the host's memory: a GPU has no room for its weights twice.
            self._grpo_buckets.append(bucket.cpu())
        except Exception as error:
            # The trainer's end of a group that is left fails at once, not at its time limit.
            self.grpo_drop()
            return {"error": f"{type(error).__name__}: {error}", "applied": False}
        return {"received": number}

    def grpo_opens(self, handle: dict[str, Any]) -> Answer:
        """Whether this worker can open what the trainer shares."""
        try:
            _memory().open_bucket(handle, handle.get("size"), self.device).close()
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"}
        return {"opens": True}

    def grpo_open(self, handles: list[dict[str, Any]]) -> Answer:
        """Open all buckets where the trainer has them; the model stays as it is."""
        manifest = getattr(self, "_grpo_manifest", None)
        try:
            if manifest is None:
                raise RuntimeError("no manifest has come before the handles")
            self._grpo_buckets = _memory().open_all(handles, manifest["buckets"], self.device)
        except Exception as error:
            self.grpo_drop()
            return {"error": f"{type(error).__name__}: {error}", "applied": False}
        return {"opened": len(handles)}

    def grpo_apply(self, mark: str) -> Answer:
        """Take over what was received or opened, all of it or nothing."""
        manifest, buckets = (
            getattr(self, "_grpo_manifest", None),
            getattr(self, "_grpo_buckets", []),
        )

        self._grpo_forget()

        def unpacked() -> Iterator[tuple[str, Any]]:
            if manifest is None or len(buckets) != len(manifest["buckets"]):
                raise RuntimeError(f"{len(buckets)} buckets were received, which is not all")
            return unpack(manifest, buckets)

        try:
            return self._grpo_take_over(unpacked, mark)
        finally:
            _memory().close_all(buckets)

    def grpo_drop(self) -> Answer:
        """Forget what was received, and close what was opened."""
        _memory().close_all(getattr(self, "_grpo_buckets", []))
        self._grpo_forget()
        return {"dropped": True}

    def _grpo_forget(self) -> None:
        self._grpo_group, self._grpo_manifest, self._grpo_buckets = None, None, []

    # -- either way ------------------------------------------------------------------------------

    def _grpo_take_over(self, read: Callable[[], Iterable[tuple[str, Any]]], mark: str) -> Answer:
        self._grpo_held: str | None = getattr(self, "_grpo_held", None)
        self._grpo_broken: str | None = getattr(self, "_grpo_broken", None)
        try:
            tensors = read()
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}", "applied": False}
        # From here to the last line the model is neither the old nor the new one.
        self._grpo_held, self._grpo_broken = None, f"the reload to {mark} did not end"
        try:
            self.reload_weights(weights_iterator=iter(tensors))
        except Exception as error:
            self._grpo_broken = f"{type(error).__name__}: {error}"
            return {"error": self._grpo_broken, "applied": True}
        self._grpo_held, self._grpo_broken = mark, None
        return {"held": mark}

    def _grpo_require_fit(self, shapes: Shapes) -> None:
        expected = self._grpo_expected()
        if expected is not None:
            require_same(expected, shapes)

    def _grpo_expected(self) -> Shapes | None:
        """Names and shapes of the checkpoint that the server was started with."""
        found: Shapes | None = getattr(self, "_grpo_names", None)
        if found is None:
            model = self.vllm_config.model_config
            found = self._grpo_names = checkpoint_shapes(str(model.model), model.revision)
        return found


def _memory() -> Any:
    # In vLLM's environment a module beside this one, in the trainer's a part of its package.
    return importlib.import_module(f"{__package__ or ''}.grpo_vllm_memory".removeprefix("."))


def join(
    at: tuple[str, int],
    name: str,
    rank: int,
    world: int,
    backend: str,
    seconds: float,
    *,
    listening: int | None,
) -> Any:
    """A process group apart from the default one, which in both processes is somebody else's.

    Args:
        at: host and port of the store, which is rank 0's.
        name: of the group; nobody who does not know it takes part by mistake.
        seconds: longest wait for the others, and then for each bucket.
        listening: rank 0's socket for the store.
    """
    # Not all of what is used here is in torch's own type information.
    c10d: Any = importlib.import_module("torch.distributed")
    limit = timedelta(seconds=seconds)
    more = {} if listening is None else {"master_listen_fd": listening}
    store = c10d.TCPStore(*at, None, listening is not None, limit, wait_for_workers=False, **more)
    named = c10d.PrefixStore(name, store)
    if backend == "nccl":
        options = c10d.ProcessGroupNCCL.Options()
        options._timeout = limit
        return c10d.ProcessGroupNCCL(named, rank, world, options)
    options = c10d.ProcessGroupGloo._Options()
    # Gloo listens too: where the store can be reached, not on every address of the machine.
    options._devices = [c10d.ProcessGroupGloo.create_device(hostname=_address_towards(*at))]
    options._timeout = limit
    options._threads = 2
    return c10d.ProcessGroupGloo(named, rank, world, options)


def broadcast(group: Any, bucket: Any) -> None:
    """From rank 0 to the others; returns when this rank's part is done."""
    import torch
    from torch.distributed import BroadcastOptions

    options = BroadcastOptions()
    options.rootRank = options.rootTensor = 0
    group.broadcast([bucket], options).wait()
    if bucket.is_cuda:
        torch.cuda.synchronize(bucket.device)


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


def _address_towards(host: str, port: int) -> str:
    """This machine's address on the way to another, or to itself; nothing is sent."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)
        return str(probe.getsockname()[0])


def read_complete(folder: Path) -> dict[str, Any]:
    """All tensors of a folder, compared with its manifest.

    Raises:
        ValueError: a file, name, shape, dtype or the count is another than the manifest says.
    """
    from safetensors.torch import load_file

    manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
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
    return tensors


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


def checkpoint_shapes(model: str, revision: str | None) -> Shapes | None:
    """From the headers of a checkpoint's safetensors files; ``None`` where there are none."""
    from safetensors import safe_open

    folder = Path(model)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            # Already there, since the server has loaded it; nothing is downloaded here.
            folder = Path(snapshot_download(model, revision=revision, local_files_only=True))
        except Exception:
            return None
    shapes: Shapes = {}
    for file in sorted(folder.glob("*.safetensors")):
        if os.path.getsize(file) and not file.name.startswith("adapter"):
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118
                    shapes[name] = list(tensors.get_slice(name).get_shape())
    return shapes or None
