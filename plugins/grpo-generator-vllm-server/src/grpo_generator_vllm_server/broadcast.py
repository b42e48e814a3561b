"""Weights over a process group of their own: the trainer is rank 0, a server's workers the others.

Each server has a group of its own for each sync. So one that dies breaks nobody else's, and the
next sync begins with a new one. What is sent stays in the host's memory until the next sync, for
servers that come back meanwhile: the policy may have moved on by then.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from grpo_core.errors import ConfigError
from grpo_generator_vllm_server.client import QUICK_SECONDS
from grpo_generator_vllm_server.engine.grpo_vllm_worker import broadcast, join
from grpo_generator_vllm_server.errors import PushError
from grpo_generator_vllm_server.launch import is_loopback
from grpo_generator_vllm_server.packing import Own, Packed, pack
from grpo_generator_vllm_server.sync import ByFile, Published, WayName
from grpo_generator_vllm_server.weights import Sent, sent_tensors

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from grpo_core.types import WeightUpdate
    from grpo_generator_vllm_server.client import Server

T = TypeVar("T")

STEP_SECONDS = 60.0
"""Longest wait for the workers to join, and then for each bucket; ``sync_seconds`` if less."""
CAUSE_SECONDS = 10.0
"""Longest wait for what the other end says of a failure."""


class ByBroadcast(ByFile):
    """All weights over the network; needs no folder that both sides see."""

    name: WayName = "broadcast"

    def __init__(self, dtype: str | None, *, backend: str, host: str | None) -> None:
        super().__init__(dtype)
        self._backend = backend
        self._host = host
        self._packed: Packed[Own] | None = None
        self._device: torch.device | None = None

    def __getstate__(self) -> dict[str, Any]:
        # The other trainer processes sample; only the main one sends.
        return self.__dict__ | {"_packed": None}

    def write(self, folder: Path, update: WeightUpdate) -> Sent:
        sent = Sent()
        self._packed = None  # not two copies at once
        self._device = next(update.model.parameters()).device
        self._packed = pack(sent_tensors(update, self.dtype, sent), Own)
        self._packed.manifest["digests"] = sent.digests
        return sent

    def push(self, server: Server, published: Published, seconds: float) -> int:
        packed = self._packed
        if packed is None:
            raise PushError(f"{server}: only the main process can give it weights by broadcast")
        host = self._own_address(server)
        step = min(seconds, STEP_SECONDS)

        def ask(method: str, **arguments: Any) -> list[Any]:
            # The workers' own limit comes first: the answer to a call that is no longer waited for
            # would be taken for that to the next.
            return self._ask(server, published, method, step + QUICK_SECONDS, **arguments)

        workers = len(ask("grpo_expect", manifest=packed.manifest))
        try:
            with _group(ask, host, workers + 1, self._backend, step) as group:
                for number, bucket in enumerate(packed.buckets):
                    on = self._device if self._backend == "nccl" else "cpu"
                    _send(ask, group, number, bucket.bytes.to(on))
        except RuntimeError as error:
            raise PushError(
                f"{server}: the broadcast of policy version {published.policy_version} to it has "
                f"broken off: {str(error).splitlines()[0]}"
            ) from error
        self._ask(server, published, "grpo_apply", seconds, mark=published.mark)
        return self._settle(server, published, seconds)

    def close(self) -> None:
        self._packed = None

    def _own_address(self, server: Server) -> str:
        if self._host is not None:
            return self._host
        if not is_loopback(urlsplit(server.url).hostname or ""):
            raise ConfigError(
                f"{server} is on another machine, so a broadcast needs an address of this one that "
                "it can reach: set generator.broadcast_host. What is sent is not encrypted: use a "
                "private network"
            )
        return "127.0.0.1"


@contextmanager
def _group(
    ask: Callable[..., list[Any]], host: str, world: int, backend: str, seconds: float
) -> Iterator[Any]:
    """A new group with a server's workers; its store listens at ``host`` only, until it ends."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.bind((host, 0))
        listening.listen()
        port = int(listening.getsockname()[1])
        name = secrets.token_hex(16)
        yield _both(
            lambda: join(
                (host, port), name, 0, world, backend, seconds, listening=listening.detach()
            ),
            partial(
                ask,
                "grpo_join",
                host=host,
                port=port,
                name=name,
                world=world,
                backend=backend,
                limit=seconds,
            ),
        )


def _both(ours: Callable[[], T], theirs: Callable[[], object]) -> T:
    """Two ends of one thing, each of which waits for the other; what ours returns.

    A failure of theirs is raised at once, and rather than ours, which it mostly causes. What is
    then left waiting ends at its time limit.
    """
    pool = ThreadPoolExecutor(2)
    mine, other = pool.submit(ours), pool.submit(theirs)
    pool.shutdown(wait=False)
    both: list[Future[Any]] = [mine, other]
    wait(both, return_when=FIRST_EXCEPTION)
    if mine.done() and mine.exception():
        wait([other], CAUSE_SECONDS)
    if other.done():
        other.result()
    return mine.result()


def _send(ask: Callable[..., list[Any]], group: Any, number: int, bucket: Tensor) -> None:
    """One bucket; returns when every worker says that it has it."""
    _both(partial(broadcast, group, bucket), partial(ask, "grpo_receive", number=number))
