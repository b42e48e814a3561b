"""A thread that talks to a service, so that training never waits for one."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

logger = logging.getLogger(__name__)

LIMIT = 10_000
"""Jobs that wait at most; a service that is down for hours must not fill the memory."""


class Worker:
    """Runs jobs one after another. A job that raises is counted, and the first one is told."""

    def __init__(self, label: str) -> None:
        """``label`` names the observer in warnings: ``observer 'wandb'``."""
        self._label = label
        self._jobs: queue.Queue[Callable[[], object] | None] = queue.Queue(LIMIT)
        self.failed = 0
        """Jobs that raised, or found no room."""
        self.error: str | None = None
        """What the first of them said."""
        # A daemon: a library that hangs must not keep the process alive.
        self._thread = threading.Thread(target=self._run, name=label, daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Jobs that have not begun."""
        return self._jobs.qsize()

    def ask(self, job: Callable[[], Any]) -> Future[Any]:
        """Run a job whose answer, or exception, is wanted."""
        answer: Future[Any] = Future()

        def run() -> None:
            try:
                answer.set_result(job())
            except BaseException as error:  # some libraries end the process: SystemExit
                answer.set_exception(error)

        self._jobs.put_nowait(run)
        return answer

    def send(self, job: Callable[[], object]) -> None:
        """Run a job some time; returns at once."""
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            self._count(f"{LIMIT} records are waiting already")

    def stop(self, timeout: float) -> bool:
        """Finish what is waiting; ``False`` when that takes more than ``timeout`` seconds."""
        until = time.monotonic() + timeout
        try:
            self._jobs.put(None, timeout=timeout)
        except queue.Full:
            return False
        self._thread.join(max(0.0, until - time.monotonic()))
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except Exception as error:
                self._count(f"{type(error).__name__}: {error}")

    def _count(self, reason: str) -> None:
        self.failed += 1
        if self.error is None:
            self.error = reason
            logger.warning("%s: %s; the run goes on", self._label, reason)
