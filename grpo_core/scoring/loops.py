"""Event loops on threads of their own: one for the scheduler, one for all async providers."""

from __future__ import annotations

import asyncio
import concurrent.futures
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from grpo_core.scoring.answers import DeadlineError, LostError
from grpo_core.scoring.threads import left

GRACE_SECONDS = 1.0
"""A loop that does nothing for so long is blocked: a turn of a loop takes microseconds."""


class BlockedLoopError(DeadlineError):
    """No answer in time, and none from the loop either: it was given up."""


class LoopThread:
    """An event loop that runs until it is closed. Clients with connection pools belong to the loop
    that they were first used on, and so live as long as it."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, coroutine: Coroutine[Any, Any, Any]) -> concurrent.futures.Future[Any]:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def where(self) -> str:
        """The line that the thread is at."""
        frame = sys._current_frames().get(self._thread.ident or 0)
        last = traceback.extract_stack(frame)[-1] if frame else None
        return f"{last.filename}:{last.lineno} in {last.name}" if last else "an unknown place"

    def close(self) -> None:
        """Cancel what is running and end; a blocked loop is left behind."""
        if self.loop.is_closed():
            return
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(GRACE_SECONDS)

    def _run(self) -> None:
        try:
            self.loop.run_forever()
            self.loop.run_until_complete(_cancel_all())
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        finally:
            self.loop.close()


class AsyncCalls:
    """Awaitables of all providers, together on one loop. Used from the scheduler's loop only."""

    def __init__(self) -> None:
        self._current: LoopThread | None = None
        self._lost: asyncio.Future[None] | None = None

    async def call(self, start: Callable[[], Awaitable[Any]], timeout: float | None) -> Any:
        """Await what ``start`` returns, on the providers' loop.

        Raises:
            DeadlineError: no result in time; it was cancelled.
            LostError: another call had blocked the loop, which was replaced.
        """
        if self._current is None or self._lost is None:
            self._current = LoopThread("grpo-rewards-async")
            self._lost = asyncio.get_running_loop().create_future()
        thread, lost = self._current, self._lost
        running = thread.submit(_guarded(start))
        future = asyncio.wrap_future(running)
        try:
            done, _ = await asyncio.wait(
                {future, lost}, timeout=timeout, return_when="FIRST_COMPLETED"
            )
        except asyncio.CancelledError:
            running.cancel()
            raise
        if future in done:
            if future.cancelled():
                raise LostError("was cancelled by itself")
            return future.result()
        running.cancel()
        future.cancel()
        if lost in done:
            raise LostError("was lost when another reward had blocked the event loop")
        await self._check(thread, timeout)
        raise DeadlineError(f"gave no answer within {timeout or 0:g} s")

    async def _check(self, thread: LoopThread, timeout: float | None) -> None:
        """Replace a loop that somebody blocks: no timeout could fire on it any more."""
        ping = asyncio.wrap_future(thread.submit(asyncio.sleep(0)))
        done, _ = await asyncio.wait({ping}, timeout=GRACE_SECONDS)
        if done or thread is not self._current or self._lost is None:
            return
        ping.cancel()
        self._current, lost = None, self._lost
        lost.set_result(None)
        raise BlockedLoopError(
            f"gave no answer within {timeout or 0:g} s, and the event loop is blocked at "
            f"{thread.where()}: an async reward must not call what blocks"
        )

    def close(self) -> None:
        if self._current is not None:
            self._current.close()
            self._current = None


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _guarded(start: Callable[[], Awaitable[Any]]) -> Any:
    try:
        return await start()
    except (SystemExit, KeyboardInterrupt, GeneratorExit) as error:
        # These would end the loop, and with it every other reward.
        raise left(error) from error
