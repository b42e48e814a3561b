"""A region at the bottom of the terminal that redraws itself while lines are printed above it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from rich.live import Live

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console, RenderableType

SECONDS_PER_FRAME = 0.25


class LiveRegion:
    """Rich's ``Live`` with a clock of its own.

    Rich's refresh thread and a print from another thread each work out how many lines to move up
    before either has drawn; when the region's height changes in between, a copy of it stays on
    the screen. Here both draw under one lock, which also guards what is drawn.
    """

    def __init__(
        self, terminal: Console, draw: Callable[[], RenderableType], lock: threading.RLock
    ) -> None:
        self._lock = lock
        self._live = Live(console=terminal, get_renderable=draw, auto_refresh=False)
        self._ended = threading.Event()
        # A daemon: a display must never keep a process alive that wants to end.
        self._thread = threading.Thread(target=self._tick, name="grpo-console", daemon=True)

    def start(self) -> None:
        self._live.start(refresh=True)
        self._thread.start()

    def stop(self) -> None:
        """Draw a last time and give the terminal back: cursor, standard output and error."""
        self._ended.set()
        self._thread.join()
        self._live.stop()

    def _tick(self) -> None:
        while not self._ended.wait(SECONDS_PER_FRAME):
            with self._lock:
                self._live.refresh()
