"""What this machine permits: tried for real, once per process."""

from __future__ import annotations

import functools
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from grpo_core.errors import ConfigError
from grpo_sandbox import seccomp
from grpo_sandbox.program import IsolationError, Limits, Program, SandboxError

log = logging.getLogger(__name__)

NOBODY = 65534
"""Who the programs are on the host when this runs as root."""

SYSTEM = ("/usr", "/bin", "/lib", "/lib64", "/lib32", "/sbin", "/etc/ld.so.cache")
"""Interpreters, tools and shared libraries; nothing of /etc, /home, /root, /var, /proc or /sys."""

HELP = {
    "apparmor_restrict_unprivileged_userns": "sysctl kernel.apparmor_restrict_unprivileged_userns=0"
    " (Ubuntu 23.10 and newer), or an AppArmor profile with `userns,` for this interpreter",
    "unprivileged_userns_clone": "sysctl kernel.unprivileged_userns_clone=1 (older Debian)",
    "max_user_namespaces": "sysctl user.max_user_namespaces=15000",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Isolation:
    """What stands between a program and the host."""

    mode: Literal["namespaces", "unsafe"]
    note: str

    def describe(self) -> str:
        """For logs: ``"namespaces (user, pid, ...)"``."""
        return f"{self.mode} ({self.note})"


def choose(*, unsafe: bool = False) -> Isolation:
    """The isolation of this machine; said once in the log.

    Raises:
        IsolationError: there is none, and ``unsafe`` is not set.
    """
    why = probe()
    if why is None:
        return Isolation(
            mode="namespaces",
            note="user, pid, mount, net, ipc, uts; private file system; seccomp; no capabilities; "
            + ("as nobody, for root" if os.geteuid() == 0 else "as the user"),
        )
    if unsafe:
        log.warning("model-written code runs WITHOUT isolation (unsafe: true), since %s", why)
        return Isolation(mode="unsafe", note=f"limits only: {why}")
    raise IsolationError(
        f"model-written code needs isolation, which this machine does not permit: {why}. "
        f"{advice()}. Or run it elsewhere (executor: piston), or, if all that this user can reach "
        "may be read, changed and sent away by what the model writes, set `unsafe: true`"
    )


@functools.cache
def probe() -> str | None:
    """Build a box and look around in it: ``None`` if it holds, else what went wrong."""
    machine = os.uname().machine
    if sys.platform != "linux":
        return f"namespaces need Linux, and this is {sys.platform}"
    if not seccomp.supported(machine):
        return f"there is no table of system calls for {machine}"
    from grpo_sandbox.local import LocalExecutor

    box = LocalExecutor(assume=Isolation(mode="namespaces", note="not yet known to hold"))
    try:
        seen = box.run_blocking(Program(files={"main.py": LOOK}), Limits(wall_s=60.0))
    except SandboxError as error:
        return str(error)
    if seen.stdout.strip() != b"held":
        return f"a first box did not hold: {seen.stdout.decode()!r}, {seen.summary()}"
    log.info("model-written code is isolated by namespaces")
    return None


LOOK = """\
import os, socket
open_doors = [path for path in ("/etc/passwd", "/proc/1", "/sys/kernel", "/var", "/run")
              if os.path.exists(path)]
try:
    socket.socket()
except PermissionError:
    pass
else:
    open_doors.append("network")
try:
    open("/work/main.py", "a")
except OSError:
    pass
else:
    open_doors.append("/work can be written")
if os.getppid() != 1 or os.getuid() == 0:
    open_doors.append("processes or users of the host")
print(*(open_doors or ["held"]))
"""


def advice() -> str:
    """Which switches of this machine are off, and how to set them."""
    found = []
    for name, help_text in HELP.items():
        for folder in ("kernel", "user"):
            path = Path("/proc/sys") / folder / name
            if path.exists() and (path.read_text().strip() == "0") != name.startswith("apparmor"):
                found.append(help_text)
    if found:
        return "Enable it: " + "; or ".join(found)
    return (
        "In a container, permit user namespaces: the default seccomp profile of Docker forbids "
        "them (run it with --security-opt seccomp=PROFILE that allows unshare, mount, pivot_root "
        "and mount_setattr); the kernel must be Linux 5.14 or newer"
    )


def interpreter(python: str | None) -> tuple[str, tuple[str, ...]]:
    """The interpreter for programs and the folders that it needs."""
    if python is None:
        path = getattr(sys, "_base_executable", None) or sys.executable
        return os.path.realpath(path), (sys.base_prefix, sys.base_exec_prefix)
    return _asked(python)


@functools.cache
def _asked(python: str) -> tuple[str, tuple[str, ...]]:
    code = "import json, sys; print(json.dumps([sys.executable, sys.prefix, sys.base_prefix, \
sys.exec_prefix, sys.base_exec_prefix]))"
    try:
        done = subprocess.run(
            [python, "-I", "-c", code], capture_output=True, text=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(f"{python!r} is no Python interpreter: {error}") from error
    executable, *prefixes = json.loads(done.stdout)
    return executable, tuple(prefixes)


def readable(paths: Iterable[str]) -> list[str]:
    """The system's folders and these, without those that lie in another one.

    Raises:
        ConfigError: a folder is not there, or would show the whole host.
    """
    chosen = [path for path in SYSTEM if os.path.lexists(path)]
    for path in sorted({os.path.realpath(path) for path in paths}):
        if not os.path.exists(path):
            raise ConfigError(f"{path!r} was to be readable in the sandbox, but is not there")
        if path in {"/", "/etc", "/home", "/root", "/proc", "/sys", "/dev", "/tmp", "/work"}:
            raise ConfigError(f"{path!r} cannot be readable in the sandbox; name a folder in it")
        if not any(f"{path}/".startswith(f"{other}/") for other in chosen):
            chosen.append(path)
    return chosen
