"""Keeps an engine alive exactly as long as the process that wanted it.

`python grpo_vllm_supervisor.py FD COMMAND...`: FD is the reading end of a pipe whose writing end
the owner holds. The owner's death, by SIGKILL too, closes it. A SIGKILL of vLLM's API server leaves
EngineCore and Worker processes behind (seen with 0.32.0, still there after 70 s), so the whole
process group is ended whenever its first process ends. Its sockets, which even a clean end leaves
behind, are in a folder that goes with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

PR_SET_PDEATHSIG = 1
POLL_SECONDS = 0.2
GRACE_SECONDS = 10.0
TRACKER_SECONDS = 2.0
"""Longest wait for what Python starts beside other processes to remove their shared memory."""


def main(arguments: list[str]) -> int:
    """Run the command until it ends or the owner does; its exit code."""
    owner, command = int(arguments[0]), arguments[1:]
    stopping = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    parent = os.getppid()
    with tempfile.TemporaryDirectory(prefix="grpo-vllm-", ignore_cleanup_errors=True) as folder:
        child = subprocess.Popen(
            command,
            start_new_session=True,
            preexec_fn=_die_with_parent,
            env={**os.environ, "TMPDIR": folder},
        )
        try:
            while child.poll() is None and not stopping:
                # A forked copy of the owner keeps the pipe open, hence the parent is watched too.
                closed, _, _ = select.select([owner], [], [], POLL_SECONDS)
                stopping = stopping or bool(closed) or os.getppid() != parent
        finally:
            _end(child)
    return child.returncode


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        _signal(child.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(GRACE_SECONDS)
    # Killed with the others, the trackers would leave the engine's segments in /dev/shm.
    for process, name in _members(child.pid):
        if b"resource_tracker" not in name:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
    end = time.monotonic() + TRACKER_SECONDS
    while any(_members(child.pid)) and time.monotonic() < end:
        time.sleep(0.02)
    _signal(child.pid, signal.SIGKILL)
    child.wait()


def _members(group: int) -> Iterator[tuple[int, bytes]]:
    """Living processes of a group and their command lines; none where there is no /proc."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, _, own = (folder / "stat").read_text("utf-8").rpartition(")")[2].split()[:3]
            if int(own) == group and state != "Z":
                yield int(folder.name), (folder / "cmdline").read_bytes()


def _signal(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _die_with_parent() -> None:
    # If this supervisor is killed, the API server gets SIGTERM, on which it ends its engine.
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
