"""CPU time, wall time and peak memory of a step, split into phases."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import torch

PHASES = ("sample", "score", "old_logprobs", "update")

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
T = TypeVar("T")


class Meter:
    """Between ``start`` and ``stop`` all time belongs to one phase: the innermost that is open,
    ``update`` when none is (forward, backward, optimizer, and each side's own bookkeeping)."""

    def __init__(self, device: str) -> None:
        self._cuda = device == "cuda"
        self._stack = ["update"]
        self._spent: dict[str, list[float]] = {}
        self._peaks: dict[str, int] = {}
        self._last = (0.0, 0.0)
        self._held = 0

    def start(self) -> None:
        """Begin a step; what the last one left behind is collected first, and not counted."""
        self._held = self._settle()
        self._spent = {name: [0.0, 0.0] for name in PHASES}
        self._peaks = dict.fromkeys(PHASES, 0)
        self._last = self._now()

    def stop(self) -> dict[str, Any]:
        """Figures of the step; seconds, and bytes above what was held at its start."""
        self._attribute()
        known = self._peak() is not None
        extra = {n: max(0, p - self._held) if known else None for n, p in self._peaks.items()}
        cpu, wall = (sum(column) for column in zip(*self._spent.values(), strict=True))
        return {
            "cpu": cpu,
            "wall": wall,
            "phases": {
                n: {"cpu": c, "wall": w, "extra_bytes": extra[n]}
                for n, (c, w) in self._spent.items()
            },
            "held_bytes": self._held,
            "extra_bytes": max(x for x in extra.values() if x is not None) if known else None,
        }

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Attribute a block; phases nest."""
        self._attribute()
        self._stack.append(name)
        try:
            yield
        finally:
            self._attribute()
            self._stack.pop()

    def timed(self, name: str, function: Callable[..., T]) -> Callable[..., T]:
        """The function, attributed whenever it is called."""

        @wraps(function)
        def inner(*args: Any, **kwargs: Any) -> T:
            with self.phase(name):
                return function(*args, **kwargs)

        return inner

    def inside(self, name: str) -> bool:
        """Whether the innermost open phase is this one."""
        return self._stack[-1] == name

    def _attribute(self) -> None:
        now = self._now()
        if self._spent:
            phase = self._stack[-1]
            for i in range(2):
                self._spent[phase][i] += now[i] - self._last[i]
            self._peaks[phase] = max(self._peaks[phase], self._peak() or 0)
            self._forget_peak()
        self._last = now

    def _now(self) -> tuple[float, float]:
        if self._cuda:
            torch.cuda.synchronize()
        return time.process_time(), time.perf_counter()

    def _settle(self) -> int:
        gc.collect()
        if not self._cuda and _CLEAR.exists():
            # What malloc keeps of freed blocks would hide the growth of the next step.
            ctypes.CDLL(None).malloc_trim(0)
        self._forget_peak()
        return torch.cuda.memory_allocated() if self._cuda else _status("VmRSS") or 0

    def _forget_peak(self) -> None:
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
        elif _CLEAR.exists():
            _CLEAR.write_text("5")

    def _peak(self) -> int | None:
        return torch.cuda.max_memory_allocated() if self._cuda else _status("VmHWM")


def _status(name: str) -> int | None:
    """Bytes; ``None`` where the system does not tell (not Linux)."""
    if not _CLEAR.exists():
        return None
    lines = _STATUS.read_text("utf-8").splitlines()
    return next((int(x.split()[1]) * 1024 for x in lines if x.startswith(f"{name}:")), None)
