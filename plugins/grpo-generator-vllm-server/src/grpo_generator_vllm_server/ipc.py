"""Weights in memory that trainer and servers share: they are not sent, only where they lie is.

The trainer packs them once, and servers read them where they are, for the host's memory without
any copy. Nothing changes or frees them before the next sync, so a server that was restarted can be
given them as well.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_core.errors import ConfigError
from grpo_generator_vllm_server.client import QUICK_SECONDS
from grpo_generator_vllm_server.engine.grpo_vllm_contents import ALIGNMENT
from grpo_generator_vllm_server.engine.grpo_vllm_memory import Handle
from grpo_generator_vllm_server.errors import PushError, ServerError
from grpo_generator_vllm_server.packing import pack
from grpo_generator_vllm_server.shared import MemoryName, SharedMemory, memory_of
from grpo_generator_vllm_server.sync import ByFile, Published, WayName
from grpo_generator_vllm_server.weights import Sent, sent_tensors

if TYPE_CHECKING:
    import torch

    from grpo_core.types import WeightUpdate
    from grpo_generator_vllm_server.client import Server


@dataclass(frozen=True, kw_only=True)
class Shared:
    """Weights that lie ready."""

    manifest: dict[str, Any]
    """As in ``Packed``."""
    handles: list[Handle]
    """One for each bucket."""
    memory: SharedMemory


class ByIPC(ByFile):
    """All weights through memory of this machine; needs no folder and no network."""

    name: WayName = "ipc"

    def __init__(self, dtype: str | None, *, memory: MemoryName) -> None:
        super().__init__(dtype)
        self._memory = memory
        self._shared: Shared | None = None

    def __getstate__(self) -> dict[str, Any]:
        # The other trainer processes sample; only the main one shares.
        return self.__dict__ | {"_shared": None}

    def write(self, folder: Path, update: WeightUpdate) -> Sent:
        sent = Sent()
        self.close()  # not two copies at once
        memory = memory_of(self._memory, next(update.model.parameters()).device)
        try:
            packed = pack(sent_tensors(update, self.dtype, sent), memory.new)
            memory.share()
        except BaseException:
            memory.close()
            raise
        self._shared = Shared(
            manifest={**packed.manifest, "digests": sent.digests},
            handles=[bucket.handle() for bucket in packed.buckets],
            memory=memory,
        )
        return sent

    def close(self) -> None:
        shared, self._shared = self._shared, None
        if shared is not None:
            shared.memory.close()

    def push(self, server: Server, published: Published, seconds: float) -> int:
        shared = self._shared
        if shared is None:
            raise PushError(f"{server}: there are no weights to share; the main process packs them")
        self._ask(server, published, "grpo_expect", seconds, manifest=shared.manifest)
        try:
            self._ask(server, published, "grpo_open", seconds, handles=shared.handles)
            self._ask(server, published, "grpo_apply", seconds, mark=published.mark)
        except PushError:
            # Of several workers only one may have failed; nobody reads what is freed later.
            with contextlib.suppress(ServerError):
                server.rpc("grpo_drop", seconds=QUICK_SECONDS)
            raise
        return self._settle(server, published, seconds)


def require_shared(memory: MemoryName, device: torch.device, servers: Sequence[Server]) -> None:
    """Raises ``ConfigError`` unless every worker of every server opens memory of this process."""
    with contextlib.closing(memory_of(memory, device)) as probe:
        bucket = probe.new(ALIGNMENT)
        probe.share()
        handle = bucket.handle()
        for server in servers:
            for answer in server.rpc("grpo_opens", seconds=QUICK_SECONDS, handle=handle):
                if answer != {"opens": True}:
                    said = answer.get("error") if isinstance(answer, dict) else answer
                    raise ConfigError(
                        f"generator.sync is 'ipc', but {server} cannot open memory of this "
                        f"process: {said}. Otherwise use file or broadcast"
                    )
