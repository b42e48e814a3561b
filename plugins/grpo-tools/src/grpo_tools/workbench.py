"""User code run aside: coroutines on one event loop, plain functions in threads, all in time."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any

from grpo_core.errors import PluginError

_GRACE = 10.0
"""Seconds within which an event loop answers, unless something blocks it."""
_MAX_LOST = 64
"""Threads of calls that were given up. Nothing can end a thread; each holds memory and whatever it
waits for, and a run that goes on losing them ends by running out of both."""


class Workbench:
    """Runs calls beside the sampling; lives as long as the environment.

    Its threads are daemons: one that hangs must not keep a finished run from ending.
    """

    def __init__(self, *, timeout: float, at_once: int) -> None:
        self.timeout = timeout
        self._loop = asyncio.new_event_loop()
        self._free = asyncio.Semaphore(at_once)
        self._lost: list[threading.Thread] = []
        threading.Thread(target=self._loop.run_forever, name="grpo-tools", daemon=True).start()

    def start(self, job: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Run a coroutine on the loop."""
        return asyncio.run_coroutine_threadsafe(job, self._loop)

    def require_alive(self) -> None:
        """Raises ``PluginError`` when the loop is blocked, or too many calls never returned."""
        try:
            self.start(asyncio.sleep(0)).result(timeout=_GRACE)
        except TimeoutError:
            raise PluginError(
                f"the event loop of the tools has not answered for {_GRACE:g} s: an async tool or "
                "method blocks it (time.sleep, a synchronous request); await instead, or make the "
                "function a plain one, which gets a thread"
            ) from None
        self._lost = [thread for thread in self._lost if thread.is_alive()]
        if len(self._lost) >= _MAX_LOST:
            raise PluginError(
                f"{len(self._lost)} calls of tools never returned although they were given up "
                f"after {self.timeout:g} s; give the tools timeouts of their own"
            )

    async def call(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """What a function returns, plain or async; its time counts from when it begins.

        Raises:
            TimeoutError: it takes longer than ``timeout`` seconds. A coroutine is cancelled; a
                thread cannot be ended, so its result is dropped.
        """
        async with self._free:
            if inspect.iscoroutinefunction(function):
                return await self._in_time(asyncio.ensure_future(function(*args, **kwargs)))
            result = await self._in_time(self._in_thread(lambda: function(*args, **kwargs)))
            if inspect.isawaitable(result):
                return await self._in_time(asyncio.ensure_future(result))
            return result

    async def _in_time(self, task: asyncio.Future[Any]) -> Any:
        # Not `wait_for`, which waits for a cancelled task: one that swallows the cancellation
        # would hold its rollout, and the whole step, for ever.
        done, _ = await asyncio.wait({task}, timeout=self.timeout)
        if not done:
            task.cancel()
            raise TimeoutError(f"no answer within {self.timeout:g} s")
        return task.result()

    def _in_thread(self, function: Callable[[], Any]) -> asyncio.Future[Any]:
        outcome: asyncio.Future[Any] = self._loop.create_future()

        def deliver(result: Any, error: BaseException | None) -> None:
            if outcome.done():
                return
            if error is None:
                outcome.set_result(result)
            else:
                outcome.set_exception(error)

        def work() -> None:
            result, error = None, None
            try:
                result = function()
            except BaseException as raised:
                # A tool that calls sys.exit(), or raises StopIteration, which no future can hold.
                plain = isinstance(raised, Exception) and not isinstance(raised, StopIteration)
                error = raised if plain else RuntimeError(f"{type(raised).__name__}: {raised}")
            self._loop.call_soon_threadsafe(deliver, result, error)

        thread = threading.Thread(target=work, name="grpo-tool", daemon=True)
        outcome.add_done_callback(lambda f: self._lost.append(thread) if f.cancelled() else None)
        thread.start()
        return outcome
