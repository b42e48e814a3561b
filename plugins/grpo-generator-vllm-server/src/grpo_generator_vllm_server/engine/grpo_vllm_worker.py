"""Worker extension for `vllm serve --worker-extension-cls`: weights from a folder, over a process
group, or in memory that is shared, all or none.

vLLM's own reload takes what it is given: a partial stream is accepted with a warning, a wrong shape
leaves the engine broken for good, and with tied embeddings on a CPU the head stays old unless it is
sent by name (0.32.0). So everything is checked and read here before the reload begins.
"""

from __future__ import annotations

import importlib
import json
import socket
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

# In vLLM's environment this folder itself is on the path, and there may be no package around it.
_BESIDE = f"{__package__}." if __package__ else ""
_adapters: Any = importlib.import_module(f"{_BESIDE}grpo_vllm_adapter")
_contents: Any = importlib.import_module(f"{_BESIDE}grpo_vllm_contents")
_memory: Any = importlib.import_module(f"{_BESIDE}grpo_vllm_memory")
_watch: Any = importlib.import_module(f"{_BESIDE}grpo_vllm_watch")

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
        _watch.watch(self)
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
            "cache_dtype": str(config.cache_config.cache_dtype),
            "quantization": config.model_config.quantization,
        }

    def grpo_config(self) -> dict[str, Any]:
        """The model's configuration, as the engine computes with it."""
        found = self.vllm_config.model_config.hf_text_config.to_dict()
        read: dict[str, Any] = json.loads(json.dumps(found, default=str))
        return read

    def grpo_sees(self, path: str, text: str) -> dict[str, Any]:
        """Whether a file is here as well, with this text."""
        try:
            return {"sees": Path(path).read_text("utf-8") == text}
        except (OSError, UnicodeDecodeError):
            return {"sees": False}

    def grpo_load(self, path: str, mark: str) -> Answer:
        """Take over the weights in ``path``; ``mark`` is what ``grpo_held`` then says."""

        def read() -> Iterable[tuple[str, Any]]:
            tensors: dict[str, Any] = _contents.read_complete(Path(path), mark, self.device)
            self._grpo_require_fit({n: list(t.shape) for n, t in tensors.items()})
            return tensors.items()

        return self._grpo_take_over(read, mark)

    def grpo_adapter(self, path: str, mark: str, loaded: bool) -> Answer:
        """Whether a folder holds the adapter that its manifest lists, and vLLM if ``loaded``."""
        self._grpo_known: dict[str, int] = getattr(self, "_grpo_known", {})
        runner, known = self.model_runner, self._grpo_known
        try:
            _adapters.require_adapter(runner, path, mark, known=known, loaded=loaded)
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}", "applied": False}
        return {"fits": True}

    def grpo_base(self, listed: dict[str, Any]) -> Answer:
        """Whether the checkpoint that the server has loaded holds what is listed; each of its
        workers compares a part."""
        model = self.vllm_config.model_config
        workers = int(self.vllm_config.parallel_config.world_size)
        part = dict(sorted(listed.items())[self.rank :: workers])
        try:
            files = _contents.checkpoint_files(str(model.model), model.revision)
            _adapters.require_base(files, part)
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}", "applied": False}
        return {"fits": True}

    # -- over a process group: expect, join, receive each bucket, apply; in shared memory: expect,
    # -- open, apply -----------------------------------------------------------------------------

    def grpo_expect(self, manifest: dict[str, Any]) -> Answer:
        """Compare what will be sent with the model, before anything is sent."""
        self.grpo_drop()
        try:
            _contents.require_layout(manifest)
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
            _memory.open_bucket(handle, handle.get("size"), self.device).close()
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"}
        return {"opens": True}

    def grpo_open(self, handles: list[dict[str, Any]]) -> Answer:
        """Open all buckets where the trainer has them; the model stays as it is."""
        manifest = getattr(self, "_grpo_manifest", None)
        try:
            if manifest is None:
                raise RuntimeError("no manifest has come before the handles")
            self._grpo_buckets = _memory.open_all(handles, manifest["buckets"], self.device)
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
            _contents.require_contents(manifest, _contents.unpack(manifest, buckets), self.device)
            tensors: Iterator[tuple[str, Any]] = _contents.unpack(manifest, buckets)
            return tensors

        try:
            return self._grpo_take_over(unpacked, mark)
        finally:
            _memory.close_all(buckets)

    def grpo_drop(self) -> Answer:
        """Forget what was received, and close what was opened."""
        _memory.close_all(getattr(self, "_grpo_buckets", []))
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
            with _watch.ours(self):
                self.reload_weights(weights_iterator=iter(tensors))
        except Exception as error:
            self._grpo_broken = f"{type(error).__name__}: {error}"
            return {"error": self._grpo_broken, "applied": True}
        self._grpo_held, self._grpo_broken = mark, None
        return {"held": mark}

    def _grpo_require_fit(self, shapes: Shapes) -> None:
        expected = self._grpo_expected()
        if expected is not None:
            _contents.require_same(expected, shapes)

    def _grpo_expected(self) -> Shapes | None:
        """Names and shapes of the checkpoint that the server was started with."""
        found: Shapes | None = getattr(self, "_grpo_names", None)
        if found is None:
            model = self.vllm_config.model_config
            found = self._grpo_names = _contents.checkpoint_shapes(str(model.model), model.revision)
        return found


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


def _address_towards(host: str, port: int) -> str:
    """This machine's address on the way to another, or to itself; nothing is sent."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)
        return str(probe.getsockname()[0])
