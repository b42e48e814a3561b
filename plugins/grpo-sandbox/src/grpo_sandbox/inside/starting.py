"""From a fork of the launcher to the program: everything is given up, then it starts."""

from __future__ import annotations

import base64
import math
import os
import resource
import signal
from typing import Any, NoReturn

from grpo_sandbox.inside import linux


def give_up_privileges(job: dict[str, Any]) -> None:
    """Limits first, as they need nothing; the filter last, as it forbids the rest."""
    limits = job["limits"]
    mb = 1 << 20
    for kind, value in (
        (resource.RLIMIT_AS, limits["memory_mb"] * mb),
        (resource.RLIMIT_FSIZE, limits["disk_mb"] * mb),
        (resource.RLIMIT_NOFILE, limits["max_open_files"]),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        resource.setrlimit(kind, (value, value))
    cpu = math.ceil(limits["cpu_s"])
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))
    if job["mode"] == "unsafe":
        # Processes are counted per user here: a low limit would stop the user's other programs.
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1, "no_new_privs")
        return
    give_up_user(limits)
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1, "no_new_privs")
    linux.filter_calls(base64.b64decode(job["seccomp"]))


def give_up_user(limits: dict[str, Any]) -> None:
    """No capability, no root, and few processes."""
    resource.setrlimit(resource.RLIMIT_NPROC, (limits["max_processes"],) * 2)
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(linux.INSIDE_UID, linux.INSIDE_UID, linux.INSIDE_UID)
        os.setresuid(linux.INSIDE_UID, linux.INSIDE_UID, linux.INSIDE_UID)
    linux.drop_capabilities()


def become_program(job: dict[str, Any], failure: int) -> NoReturn:
    """Never returns: the program, or the reason why not into ``failure``."""
    try:
        os.setsid()
        for handled in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
            signal.signal(handled, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        close_all_but(failure)
        give_up_privileges(job)
        os.execve(job["argv"][0], job["argv"], job["env"])
    except BaseException as error:
        os.write(failure, f"{type(error).__name__}: {error}".encode()[:2000])
    os._exit(126)


def close_all_but(*kept: int) -> None:
    """The program inherits stdin, stdout and stderr and nothing else."""
    first = 3
    for handle in [*sorted(kept), 1 << 16]:
        os.closerange(first, handle)
        first = handle + 1


def start_program(job: dict[str, Any]) -> int:
    """Fork the program; its pid once it really runs.

    Raises:
        OSError: the box could not be closed, or the command does not exist.
    """
    reading, failure = os.pipe()  # closed by a successful exec: pipes are close-on-exec
    pid = os.fork()
    if pid == 0:
        become_program(job, failure)
    os.close(failure)
    reason = b"".join(iter(lambda: os.read(reading, 4096), b""))
    os.close(reading)
    if reason:
        os.waitpid(pid, 0)
        raise OSError(reason.decode("utf-8", "replace"))
    null = os.open("/dev/null", os.O_RDWR)
    for stream in (0, 1, 2):  # so that readers see the end when the program ends
        os.dup2(null, stream)
    return pid


def ended(status: int, usage: resource.struct_rusage) -> dict[str, Any]:
    code = os.waitstatus_to_exitcode(status)
    return {
        "code": code if code >= 0 else None,
        "signal": -code if code < 0 else None,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_mb": usage.ru_maxrss / 1024,
    }
