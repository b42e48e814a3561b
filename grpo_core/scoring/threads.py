"""Blocking calls in daemon threads: one that hangs is left behind and another takes its place."""

from __future__ import annotations

import asyncio
import itertools
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from grpo_core.scoring.answers import DeadlineError, ExitRaisedError

_number = itertools.count(1)


class CallThread:
    """A thread that makes one call after the other. As a daemon it never blocks the interpreter's
    exit, as a thread of ``concurrent.futures`` would."""

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = (
            queue.SimpleQueue()
        )
        name = f"grpo-reward-{name}-{next(_number)}"
        threading.Thread(target=_serve, args=(self._jobs,), name=name, daemon=True).start()

    def start(self, call: Callable[[], Any]) -> asyncio.Future[Any]:
        """Begin; the result comes to the event loop that this is called on."""
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        self._jobs.put((call, future))
        return asyncio.wrap_future(future)

    def end(self) -> None:
        """End the thread when it is done with what it is doing, if ever."""
        self._jobs.put(None)


def _serve(jobs: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None]) -> None:
    while (job := jobs.get()) is not None:
        call, future = job
        try:
            future.set_result(call())
        except StopIteration as error:
            # A future cannot hold it: whoever waits for it would wait for ever.
            future.set_exception(left(error))
        except Exception as error:
            future.set_exception(error)
        except BaseException as error:
            future.set_exception(left(error))
        # Else the last request would be held until the next one.
        del job, call, future


def left(error: BaseException) -> ExitRaisedError:
    """What would end the thread or the loop, as an ordinary exception."""
    made = ExitRaisedError(f"raised {type(error).__name__}: {error}")
    made.__cause__ = error
    return made


class Threads:
    """As many threads as calls run at a time."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._idle: list[CallThread] = []
        self.abandoned = 0

    async def call(self, call: Callable[[], Any], timeout: float | None) -> Any:
        """Raises ``DeadlineError`` when there is no result in time; the thread is given up."""
        thread = self._idle.pop() if self._idle else CallThread(self._name)
        future = thread.start(call)
        try:
            done, _ = await asyncio.wait({future}, timeout=timeout)
        except asyncio.CancelledError:
            thread.end()
            future.cancel()
            raise
        if not done:
            self.abandoned += 1
            thread.end()
            future.cancel()
            raise DeadlineError(f"gave no answer within {timeout:g} s")
        self._idle.append(thread)
        return future.result()

    def close(self) -> None:
        while self._idle:
            self._idle.pop().end()
