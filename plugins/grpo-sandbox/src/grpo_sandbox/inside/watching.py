"""Memory and time of a whole tree of processes."""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Iterator
from typing import Any


class Watcher:
    """Counts wall time and the memory of the whole tree of one process."""

    def __init__(self, limits: dict[str, Any]) -> None:
        # Opened before the file system changes: paths of the host are gone afterwards.
        self._proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
        self._most = limits["memory_mb"] << 20
        self._wall_s = limits["wall_s"]
        self._deadline = float("inf")
        self.peak = 0

    def start_clock(self) -> None:
        self._deadline = time.monotonic() + self._wall_s

    def verdict(self, root: int) -> str | None:
        if time.monotonic() > self._deadline:
            return "wall time"
        used = sum(self._resident(pid) for pid in self.below(root))
        self.peak = max(self.peak, used)
        return "memory" if used > self._most else None

    def below(self, pid: int) -> Iterator[int]:
        """All descendants. In a pid namespace an orphan's new parent is pid 1, so none is lost."""
        for thread in self._names(f"{pid}/task"):
            for child in self._read(f"{pid}/task/{thread}/children").split():
                yield int(child)
                yield from self.below(int(child))

    def _resident(self, pid: int) -> int:
        fields = self._read(f"{pid}/statm").split()
        return int(fields[1]) * resource.getpagesize() if fields else 0

    def _names(self, path: str) -> list[str]:
        with contextlib.suppress(OSError):  # ended meanwhile
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._proc)
            try:
                return os.listdir(handle)
            finally:
                os.close(handle)
        return []

    def _read(self, path: str) -> bytes:
        with contextlib.suppress(OSError):
            handle = os.open(path, os.O_RDONLY, dir_fd=self._proc)
            try:
                return os.read(handle, 1 << 16)
            finally:
                os.close(handle)
        return b""
