"""Programs on this machine, each in a box of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from base64 import b64encode
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from grpo_core.errors import ConfigError
from grpo_sandbox import isolation, seccomp
from grpo_sandbox.program import Finished, Limits, Program, Reason, SandboxError

BOOTSTRAP = """\
import sys, types
package = types.ModuleType("grpo_sandbox")
package.__path__ = [sys.argv[1]]
sys.modules["grpo_sandbox"] = package
from grpo_sandbox.inside.launcher import main
main()
"""
"""The launcher without the packages that this one needs: less to import, less to go wrong."""
PATIENCE_S = 1.0
"""For the one of two programs that the other no longer needs."""
PACKAGE = str(Path(__file__).parent)
GRACE_S = 60.0
"""Beyond the wall time: for building the box on a busy machine. Then the box itself is broken."""

ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "PYTHONDONTWRITEBYTECODE": "1",
    # Each of their threads would count as a process, and as eight MiB of address space.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # The order of sets is the same every time, so that a score is, too.
    "PYTHONHASHSEED": "0",
}


class LocalExecutor:
    """Runs programs in new namespaces of this machine, see the README's threat model.

    Args:
        python: the programs' interpreter, ``None`` for the one that runs this, without the
            packages of its virtual environment. The packages of the one named can be imported.
        read_only: further folders that programs may read.
        concurrency: programs at a time; ``None`` for the number of CPUs.
        unsafe: run also where nothing isolates the programs.
        assume: this isolation, without trying whether it holds.

    Raises:
        IsolationError: this machine permits no isolation, and ``unsafe`` is not set.
    """

    def __init__(
        self,
        *,
        python: str | None = None,
        read_only: tuple[str, ...] = (),
        concurrency: int | None = None,
        unsafe: bool = False,
        assume: isolation.Isolation | None = None,
    ) -> None:
        self.isolation = assume or isolation.choose(unsafe=unsafe)
        self._python, prefixes = isolation.interpreter(python)
        self.readable = isolation.readable((*prefixes, *read_only))
        self._workers = concurrency or len(os.sched_getaffinity(0))
        self._threads: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def describe(self) -> str:
        return self.isolation.describe()

    def close(self) -> None:
        """Wait for what runs and end the threads; they start again when needed."""
        with self._lock:
            threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown()

    async def run(self, program: Program, limits: Limits) -> Finished:
        """Raises ``SandboxError`` when the box, not the program, failed."""
        cancelled = threading.Event()
        try:
            return await asyncio.wrap_future(
                self._pool().submit(self.run_blocking, program, limits, cancelled)
            )
        finally:
            # After a timeout above nobody waits for this program any more.
            cancelled.set()

    def run_blocking(
        self, program: Program, limits: Limits, cancelled: threading.Event | None = None
    ) -> Finished:
        """The same for callers without an event loop."""
        with tempfile.TemporaryFile() as stdin:
            stdin.write(program.stdin)
            stdin.flush()
            # Opened again to read only: the program could fill the host's disk through it.
            reading = os.open(f"/proc/self/fd/{stdin.fileno()}", os.O_RDONLY)
            try:
                with self._box(program, limits, reading, subprocess.PIPE) as box:
                    return box.wait(cancelled or threading.Event())
            finally:
                os.close(reading)

    async def run_pair(
        self, asked: Program, asking: Program, limits: Limits
    ) -> tuple[Finished, Finished]:
        """Two programs that talk over pipes; ``asked`` is ended when ``asking`` is."""
        cancelled = threading.Event()
        try:
            return await asyncio.wrap_future(
                self._pool().submit(self._pair_blocking, asked, asking, limits, cancelled)
            )
        finally:
            cancelled.set()

    def _pair_blocking(
        self, asked: Program, asking: Program, limits: Limits, cancelled: threading.Event
    ) -> tuple[Finished, Finished]:
        questions, answers = os.pipe(), os.pipe()
        with contextlib.ExitStack() as stack:
            try:
                first = stack.enter_context(self._box(asked, limits, questions[0], answers[1]))
                second = stack.enter_context(self._box(asking, limits, answers[0], questions[1]))
            finally:
                # The ends that the boxes hold: only theirs may keep a pipe open.
                for handle in (*questions, *answers):
                    os.close(handle)
            over = threading.Event()
            found: list[Finished | SandboxError] = []

            def follow() -> None:
                try:
                    found.append(first.wait(over, dispensable=True))
                except SandboxError as error:
                    found.append(error)

            follower = threading.Thread(target=follow, daemon=True)
            follower.start()
            try:
                verdict = second.wait(cancelled)
            finally:
                # Its stdin is closed now, so that it ends by itself unless it hangs.
                follower.join(PATIENCE_S)
                over.set()
                follower.join()
        if isinstance(found[0], SandboxError):
            raise found[0]
        return found[0], verdict

    def _pool(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(self._workers, "sandbox")
            return self._threads

    def _argv(self, program: Program, work: str) -> list[str]:
        main = f"{work}/{program.main}"
        if program.language == "python":
            return [self._python, "-I", "-B", main, *program.args]
        if program.language == "command":
            return [program.main, *program.args]
        raise ConfigError(
            f"the local sandbox runs 'python' and 'command', not {program.language!r}; another "
            "language needs an executor that has it, such as piston"
        )

    @contextlib.contextmanager
    def _box(self, program: Program, limits: Limits, stdin: int, stdout: int) -> Iterator[Box]:
        check_names(program.files)
        unsafe = self.isolation.mode == "unsafe"
        with contextlib.ExitStack() as stack:
            work, home = "/work", "/tmp"
            if unsafe:
                folder = stack.enter_context(
                    tempfile.TemporaryDirectory(prefix="grpo-unsafe-", ignore_cleanup_errors=True)
                )
                work, home = f"{folder}/work", f"{folder}/home"
                os.mkdir(home)
            job: dict[str, Any] = {
                "mode": self.isolation.mode,
                "parent": os.getpid(),
                "argv": self._argv(program, work),
                "env": ENVIRONMENT | {"HOME": home, "TMPDIR": home},
                "files": dict(program.files),
                "work": work,
                "home": home,
                "read_only": self.readable,
                "limits": limits.model_dump(),
                "host_uid": isolation.NOBODY,
                "host_gid": isolation.NOBODY,
                "seccomp": ""
                if unsafe
                else b64encode(seccomp.program(os.uname().machine)).decode(),
            }
            box = Box(job, limits, stdin, stdout)
            try:
                yield box
            finally:
                box.end()


def check_names(files: Mapping[str, str]) -> None:
    """Raises ``ConfigError`` for a name that leads out of the program's folder."""
    for name in files:
        parts = name.split("/")
        if not name or name.startswith("/") or {"", ".", ".."} & set(parts) or "\0" in name:
            raise ConfigError(f"{name!r} cannot be a program's file: relative, without '..'")


class Box:
    """One launcher, from its start until nothing is left of it."""

    def __init__(self, job: dict[str, Any], limits: Limits, stdin: int, stdout: int) -> None:
        self._limits = limits
        self._started = time.monotonic()
        status, told = os.pipe()
        self._status = status
        with tempfile.TemporaryFile() as order:
            order.write(json.dumps(job).encode())
            order.seek(0)
            handles = (str(order.fileno()), str(told))
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", BOOTSTRAP, PACKAGE, *handles],
                    stdin=stdin,
                    stdout=stdout,
                    stderr=subprocess.PIPE,
                    pass_fds=(order.fileno(), told),
                    env={"LANG": "C.UTF-8"},
                    cwd="/",
                    start_new_session=True,
                )
            except BaseException:
                os.close(status)
                raise
            finally:
                os.close(told)

    def wait(self, cancelled: threading.Event, *, dispensable: bool = False) -> Finished:
        """Read until the end.

        Args:
            dispensable: being cancelled is one way to end, and no error.

        Raises:
            SandboxError: the box could not be built, or was killed from outside.
        """
        output, cut = self._read(cancelled)
        wall_s = time.monotonic() - self._started
        stdout, stderr = output.get("stdout", b""), output.get("stderr", b"")
        if cut == "flooded":
            return self._finished("output", {}, stdout, stderr, wall_s)
        if cut == "cancelled" and dispensable:
            return self._finished("signal", {"signal": 9}, stdout, stderr, wall_s)
        try:
            told = json.loads(output["status"])
        except ValueError:
            why = f"was {cut}" if cut else "ended without a word"
            raise SandboxError(f"the sandbox {why} after {wall_s:.1f} s") from None
        if "setup_error" in told:
            raise SandboxError(f"the sandbox could not be built: {told['setup_error']}")
        return self._finished(self._reason(told), told, stdout, stderr, wall_s)

    def end(self) -> None:
        """Kill what still runs. The launcher's death is that of everything inside."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                # Held open by the last process inside: at the end of it nobody is left.
                _drain(stream.fileno(), seconds=10)
                stream.close()
        os.close(self._status)

    def _reason(self, told: dict[str, Any]) -> Reason:
        stopped: Reason | None = told.get("stopped")
        if stopped:
            return stopped
        if told["signal"] is None:
            return "exited"
        over = told["cpu_s"] >= self._limits.cpu_s
        return "cpu time" if over or told["signal"] == signal.SIGXCPU else "signal"

    def _finished(
        self, reason: Reason, told: dict[str, Any], stdout: bytes, stderr: bytes, wall_s: float
    ) -> Finished:
        return Finished(
            reason=reason,
            code=told.get("code"),
            signal=told.get("signal"),
            stdout=stdout,
            stderr=stderr,
            cpu_s=told.get("cpu_s", 0.0),
            wall_s=wall_s,
            peak_mb=told.get("peak_mb", 0.0),
        )

    def _read(self, cancelled: threading.Event) -> tuple[dict[str, bytes], str]:
        """Everything written, by stream; and why no more was read, ``""`` for the end."""
        most = self._limits.output_kb << 10
        deadline = self._started + self._limits.wall_s + GRACE_S
        handles = {"status": self._status}
        for name, stream in (("stdout", self._process.stdout), ("stderr", self._process.stderr)):
            if stream is not None:
                handles[name] = stream.fileno()
        output = {name: bytearray() for name in handles}
        cut = ""
        with selectors.DefaultSelector() as selector:
            for name, handle in handles.items():
                selector.register(handle, selectors.EVENT_READ, name)
            while selector.get_map() and not cut:
                if cancelled.is_set():
                    cut = "cancelled"
                elif time.monotonic() > deadline:
                    cut = "stuck"
                for key, _ in selector.select(0.1):
                    part = os.read(key.fd, 1 << 16)
                    if not part:
                        selector.unregister(key.fd)
                    output[key.data] += part
                    if len(output[key.data]) > most:
                        cut = "flooded"
        return {name: bytes(text[:most]) for name, text in output.items()}, cut


def _drain(handle: int, *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        selector.register(handle, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            if selector.select(left) and not os.read(handle, 1 << 16):
                return
