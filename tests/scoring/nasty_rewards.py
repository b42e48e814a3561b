"""Rewards that hang, crash, lie or eat memory. Worker processes import this file by its name."""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CATASTROPHE = "a" * 40 + "!"


def note_pid() -> None:
    """Where the test looks for processes that should be gone."""
    with Path(os.environ["PIDS"]).open("a") as file:
        file.write(f"{os.getpid()}\n")


def good(completions: list[str], **_: Any) -> list[float]:
    note_pid()
    return [float(len(c)) for c in completions]


def obeys(completions: list[str], **_: Any) -> list[Any]:
    """Does what the first completion says; scores 1 if it comes back."""
    note_pid()
    return [ORDERS[order]() or 1.0 if order in ORDERS else 1.0 for order in completions]


def _grandchild() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with Path(os.environ["PIDS"]).open("a") as file:
        file.write(f"{child.pid}\n")
    time.sleep(600)


def _spin() -> None:
    while True:
        pass


ORDERS: dict[str, Any] = {
    "sleep in C": lambda: time.sleep(600),
    "spin": _spin,
    "regex": lambda: re.match(r"(a+)+$", CATASTROPHE),
    "grandchild": _grandchild,
    "exit": lambda: os._exit(7),
    "segfault": lambda: ctypes.string_at(0),
    "sys.exit": lambda: sys.exit(3),
    "memory": lambda: len(bytearray(4 << 30)) and None,
    "raise": lambda: {}["no such key"],
    "nan": lambda: float("nan"),
    "string": lambda: "0.5",
    "print": lambda: print("x" * 1_000_000),
}


class EachAlone:
    """The same, rollout by rollout, and says so."""

    name = "each-alone"
    per_rollout = True

    def score(self, request: Any) -> list[Any]:
        request.log.extra("length", [len(r.text) for r in request.rollouts_B])
        return obeys([r.text for r in request.rollouts_B])


async def hangs_async(completions: list[str], **_: Any) -> list[float]:
    await asyncio.sleep(600)
    return [0.0]


async def blocks_the_loop(completions: list[str], **_: Any) -> list[float]:
    time.sleep(600)
    return [1.0] * len(completions)


class Counts:
    """Has state: each call gets the number of calls before it."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, completions: list[str], **_: Any) -> list[float]:
        note_pid()
        if completions[0] == "exit":
            os._exit(1)
        self.calls += 1
        return [float(self.calls)] * len(completions)

    def state_dict(self) -> dict[str, int]:
        return {"calls": self.calls}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.calls = state["calls"]


class CannotBeBuilt:
    def __init__(self) -> None:
        raise LookupError("no weights here")

    def __call__(self, completions: list[str]) -> list[float]:
        return []


class SeesTorch:
    """Scores 1 where no torch has been imported."""

    name = "sees-torch"

    def score(self, request: Any) -> list[Any]:
        return [float("torch" not in sys.modules)] * len(request.rollouts_B)


class Logs:
    """Makes one call to its log."""

    def __init__(self, call: tuple[str, str, Any]) -> None:
        self.call = call

    def __call__(self, completions: list[str], log_extra: Any, log_metric: Any) -> list[float]:
        kind, name, value = self.call
        {"extra": log_extra, "metric": log_metric}[kind](name, value)
        return [0.0] * len(completions)
