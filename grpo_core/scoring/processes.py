"""Calls in worker processes, which are killed when they hang, wherever they are.

A worker is a new interpreter (``python -m grpo_core.scoring.worker``), never a fork: no model, no
CUDA context and no lock of the trainer comes into it. Requests go to it as pickle; what comes back
is JSON, so that a worker which ran something hostile cannot run code here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pickle  # to our own child, over a socket that nobody else has; never from it
import signal
import subprocess
import sys
from multiprocessing.connection import Connection, Pipe
from typing import Any

from grpo_core.errors import ConfigError, RewardError
from grpo_core.scoring.answers import Answer, DeadlineError, LostError, RemoteError, decoded
from grpo_core.scoring.threads import CallThread
from grpo_core.types import ScoreRequest

START_SECONDS = 300.0
"""For imports and the building of the provider; as long as the default timeout of a call."""
OF_THE_TRAINER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
"""A library that finds these in a worker would wait for other ranks that never come."""


def packed(provider: object, name: str) -> bytes:
    """A provider, or the recipe of one, for a worker.

    Raises:
        ConfigError: it cannot be pickled, or the worker could not find it.
    """
    try:
        payload = pickle.dumps(provider)
    except Exception as error:
        raise ConfigError(
            f"reward {name!r} cannot be sent to a worker process (execution.isolation): "
            f"{type(error).__name__}: {error}. Name it in a config, or pass a function or class "
            "from the top of a module"
        ) from error
    if b"__main__" in payload:
        raise ConfigError(
            f"reward {name!r} is defined in the script that is being run, where a worker process "
            "(execution.isolation) cannot import it from; move it into a module"
        )
    return payload


class Worker:
    """One process and the thread that talks to it."""

    def __init__(self, owner: Processes) -> None:
        self._owner = owner
        # Linux kills a worker when the *thread* that started it ends; this one does not.
        self.thread = CallThread(owner.name)
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._starts = 0

    def start(self) -> None:
        """Start the process, if there is none, and wait until it has built the provider.

        Raises:
            RemoteError: building it raised.
            LostError: the process ended.
            DeadlineError: it took too long.
        """
        if self._process is not None and self._process.poll() is None:
            return
        self.kill()
        owner = self._owner
        ours, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "grpo_core.scoring.worker", str(theirs.fileno())],
                # The worker sees the end of this pipe when this process is gone.
                stdin=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                env={k: v for k, v in os.environ.items() if k not in OF_THE_TRAINER},
                # A group of its own: what it starts is killed with it, and Ctrl-C is not for it.
                start_new_session=True,
            )
        self._connection = ours
        self._starts += 1
        owner.restarts += self._starts > 1
        path = [entry or os.getcwd() for entry in sys.path]
        first = {"path": path, "memory_mb": owner.memory_mb, "parent": os.getpid()}
        self._send(pickle.dumps(first))
        self._send(owner.payload)
        try:
            hello = self._receive(START_SECONDS, "was not built")
        except RemoteError as error:
            error.args = (f"could not be built in its worker process: {error}",)
            raise
        owner.has_state = hello["has_state"]
        owner.needs_batch = hello["needs_batch"]
        owner.per_rollout = hello["per_rollout"]
        if owner.has_state and owner.concurrency > 1:
            raise RewardError(
                f"has state, and each of {owner.concurrency} worker processes would have its own; "
                "set execution.concurrency to 1"
            )
        if owner.state is None:
            owner.state = hello["state"]
        elif owner.has_state:
            self._send(pickle.dumps(("load", owner.state)))
            self._receive(START_SECONDS, "did not load its state")

    def ask(self, request: ScoreRequest, timeout: float | None) -> Answer:
        """One call; afterwards the process is idle or gone."""
        self.start()
        try:
            frame = pickle.dumps(("score", request))
        except Exception as error:
            raise RewardError(
                f"cannot be asked in a worker process: the data cannot be pickled "
                f"({type(error).__name__}: {error})"
            ) from error
        self._send(frame)
        found = self._receive(timeout, "gave no answer")
        if self._owner.has_state:
            self._owner.state = found["state"]
        return Answer(
            outcomes_B=tuple(decoded(entry) for entry in found["outcomes"]),
            columns=found["columns"],
            metrics=found["metrics"],
        )

    def kill(self) -> None:
        """End the process and all that it started, and wait until it is gone."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdin is not None:
            process.stdin.close()
        if self._connection is not None:
            self._connection.close()

    def _send(self, frame: bytes) -> None:
        assert self._connection is not None
        # A broken pipe is told by `_receive`, which knows what the process died of.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._connection.send_bytes(frame)

    def _receive(self, timeout: float | None, what: str) -> dict[str, Any]:
        connection, process = self._connection, self._process
        assert connection is not None
        assert process is not None
        try:
            if not connection.poll(timeout):
                self.kill()
                raise DeadlineError(f"{what} within {timeout or 0:g} s; its process was killed")
            found: dict[str, Any] = json.loads(connection.recv_bytes())
        except DeadlineError:
            raise
        except (EOFError, OSError):
            self.kill()
            raise LostError(
                f"lost its worker process, which {_ended(process.returncode)}"
            ) from None
        if "error" in found:
            raise RemoteError(**found["error"])
        return found


class Processes:
    """The workers of one provider, started when they are needed."""

    def __init__(
        self, name: str, payload: bytes, *, concurrency: int, memory_mb: int | None
    ) -> None:
        self.name = name
        self.payload = payload
        self.concurrency = concurrency
        self.memory_mb = memory_mb
        self.restarts = 0
        self.has_state = False
        self.needs_batch = False
        self.per_rollout = False
        self.state: Any = None
        """As of the last answer: what a worker that takes another's place goes on from."""
        self._idle: list[Worker] = []
        self._busy: set[Worker] = set()

    async def start(self) -> None:
        """Have one worker, so that what cannot be built is known before anything is sampled."""
        await self._with_worker(lambda worker: worker.start())

    async def call(self, request: ScoreRequest, timeout: float | None) -> Answer:
        """See ``Worker.ask`` for what it raises."""
        answer: Answer = await self._with_worker(lambda worker: worker.ask(request, timeout))
        return answer

    def state_dict(self) -> Any:
        """The provider's, after its last answer."""
        return self.state

    def load_state_dict(self, state: Any) -> None:
        """Workers that run already are replaced: the next one starts from ``state``."""
        self.close()
        self.state = state

    def close(self) -> None:
        for worker in (*self._idle, *self._busy):
            worker.kill()
            worker.thread.end()
        self._idle.clear()

    async def _with_worker(self, call: Any) -> Any:
        worker = self._idle.pop() if self._idle else Worker(self)
        self._busy.add(worker)
        try:
            found = await worker.thread.start(lambda: call(worker))
        except asyncio.CancelledError:
            worker.kill()
            worker.thread.end()
            raise
        except Exception:
            self._idle.append(worker)
            raise
        finally:
            self._busy.discard(worker)
        self._idle.append(worker)
        return found


def _ended(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
