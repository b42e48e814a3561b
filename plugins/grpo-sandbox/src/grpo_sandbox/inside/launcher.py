"""Builds the box, runs one program in it, watches it and takes everything away afterwards.

Started as ``python -I -S -c BOOTSTRAP PACKAGE JOB STATUS`` with two file descriptors: a job
as JSON, and where one JSON object with the outcome goes. Three processes, the program the last:

* the *watcher* (this one) stays outside of the pid namespace, counts memory and wall time;
* the *init* (pid 1 inside) builds the file system, and its end is the end of all that is inside;
* the *program*, which has given up everything before it starts.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from typing import Any, NoReturn

from grpo_sandbox.inside import linux
from grpo_sandbox.inside.filesystem import build_root, write_files
from grpo_sandbox.inside.starting import ended, start_program
from grpo_sandbox.inside.watching import Watcher

TICK = 0.03
"""Seconds between two looks at memory and clock."""


def be_init(job: dict[str, Any], alive: int, report: int) -> NoReturn:
    """Pid 1: when it ends, the kernel kills whatever else is in the namespace, daemons included."""
    try:
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL, "pdeathsig")
        # When the machine's memory runs out, the program is to be the victim; it inherits this.
        linux.write("/proc/self/oom_score_adj", "1000")
        linux.prctl(linux.PR_SET_DUMPABLE, 0, "dumpable")
        if select.select([alive], [], [], 0)[0]:
            os._exit(125)  # the watcher died before the line above
        build_root(job)
        program = start_program(job)
        say(report, {"started": True})
        while True:
            pid, status, usage = os.wait4(-1, 0)
            if pid == program:
                say(report, ended(status, usage))
                os._exit(0)
    except BaseException as error:
        say(report, {"setup_error": f"{type(error).__name__}: {error}"})
    os._exit(125)


def say(handle: int, message: dict[str, Any]) -> None:
    os.write(handle, json.dumps(message).encode() + b"\n")


def lines(handle: int) -> list[dict[str, Any]]:
    """What has been reported so far, without waiting."""
    text = b""
    while select.select([handle], [], [], 0)[0]:
        part = os.read(handle, 4096)
        if not part:
            break
        text += part
    return [json.loads(line) for line in text.splitlines()]


def watch(init: int, reports: int, watcher: Watcher) -> dict[str, Any]:
    """Until the program has ended or must: what is to be told outside."""
    result: dict[str, Any] = {}
    handle = os.pidfd_open(init)
    while True:
        over = bool(select.select([handle], [], [], TICK)[0])
        for message in lines(reports):
            if message.pop("started", False):
                watcher.start_clock()
            result |= message
        if over:
            break
        reason = watcher.verdict(init)
        if reason:
            os.kill(init, signal.SIGKILL)
            result |= {"stopped": reason}
            break
    _, _, usage = os.wait4(init, 0)
    result.setdefault("cpu_s", usage.ru_utime + usage.ru_stime)
    result["peak_mb"] = max(result.get("peak_mb", 0.0), watcher.peak / (1 << 20))
    if not result.keys() & {"code", "stopped", "setup_error"}:
        result["setup_error"] = "the first process inside was killed from outside"
    return result


def run_inside(job: dict[str, Any]) -> dict[str, Any]:
    watcher = Watcher(job["limits"])
    # Before the namespaces, too: init takes the root away under this process's feet.
    null = os.open("/dev/null", os.O_RDWR)
    alive, held = os.pipe()
    reports, report = os.pipe()
    linux.enter_namespaces(job["host_uid"], job["host_gid"])
    init = os.fork()
    if init == 0:
        os.close(held)
        os.close(reports)
        be_init(job, alive, report)
    os.close(report)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    return watch(init, reports, watcher)


def run_unsafe(job: dict[str, Any]) -> dict[str, Any]:
    """Without walls: limits, and as thorough a killing as can be had."""
    linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1, "subreaper")
    watcher = Watcher(job["limits"])
    write_files(job["work"], job["files"])
    os.chdir(job["home"])
    program = start_program(job)
    watcher.start_clock()
    result: dict[str, Any] = {}
    while not result:
        pid, status, usage = os.wait4(-1, os.WNOHANG)
        if pid == program:
            result = ended(status, usage)
        elif pid == 0:
            reason = watcher.verdict(os.getpid())
            result = {"stopped": reason} if reason else {}
            time.sleep(TICK)
    for _ in range(1000):
        left = list(watcher.below(os.getpid()))
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                continue
        if not left:
            break
    return result | {"peak_mb": max(result.get("peak_mb", 0.0), watcher.peak / (1 << 20))}


def main() -> None:
    job_handle, status = int(sys.argv[2]), int(sys.argv[3])
    os.set_inheritable(status, False)
    with open(job_handle, "rb") as handle:
        job = json.load(handle)
    try:
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL, "pdeathsig")
        if os.getppid() != job["parent"]:
            sys.exit(125)
        result = run_unsafe(job) if job["mode"] == "unsafe" else run_inside(job)
    except Exception as error:
        result = {"setup_error": f"{type(error).__name__}: {error}"}
    say(status, result)
