"""What is run, under which limits, and what came of it: the words that all executors share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from pydantic import Field

from grpo_core.errors import PluginError
from grpo_core.settings import Settings


class Limits(Settings):
    """What one run of a program may use; all of it is given back at the end."""

    cpu_s: float = Field(
        5.0,
        gt=0,
        description="Seconds of CPU per process, rounded up to whole ones (open-r1 gives a test "
        "5 s of wall time).",
    )
    wall_s: float = Field(
        15.0, gt=0, description="Seconds by the clock; more than CPU, as the machine may be busy."
    )
    memory_mb: int = Field(
        512, ge=32, description="MiB resident of all processes together, and addressable of each."
    )
    disk_mb: int = Field(32, ge=1, description="MiB in /tmp, which is memory; counted apart.")
    max_files: int = Field(4096, ge=16, description="Files and folders in /tmp.")
    max_processes: int = Field(32, ge=1, description="Processes and threads at a time.")
    max_open_files: int = Field(64, ge=16, description="Open file descriptors of each process.")
    output_kb: int = Field(
        1024, ge=1, description="KiB of stdout, and of stderr; a program that writes more is ended."
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """Files, of which one is run.

    Example: ``Program(files={"main.py": "print(input())"}, stdin=b"5\\n")``.
    """

    files: Mapping[str, str] = field(default_factory=dict)
    """Name to text; names are relative and may have folders."""
    main: str = "main.py"
    """The file that is run, by the executor's interpreter of ``language``."""
    language: str = "python"
    args: tuple[str, ...] = ()
    stdin: bytes = b""


Reason = Literal["exited", "signal", "cpu time", "wall time", "memory", "output"]
"""How a program ended: by itself, by a signal of its own making, or at one of its limits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """A program has run to its end, whichever way: all that is here is the program's doing.

    Example: ``Finished(reason="exited", code=0, signal=None, stdout=b"5\\n", stderr=b"",
    cpu_s=0.02, wall_s=0.05, peak_mb=9.5)``.
    """

    reason: Reason
    code: int | None
    """Exit status where it ``exited``."""
    signal: int | None
    stdout: bytes
    stderr: bytes
    cpu_s: float
    wall_s: float
    peak_mb: float
    """Most memory seen, MiB; 0 where the executor does not know."""

    @property
    def ok(self) -> bool:
        return self.reason == "exited" and self.code == 0

    def summary(self) -> str:
        """One line: ``"exit status 1: ZeroDivisionError: division by zero"``."""
        ending = {"exited": f"exit status {self.code}", "signal": f"signal {self.signal}"}
        text = ending.get(self.reason, f"stopped at its limit of {self.reason}")
        last = self.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2][:200]
        return f"{text}: {last}" if last else text


class SandboxError(PluginError):
    """The box failed, not the program in it; nothing is known about the program."""


class IsolationError(SandboxError):
    """This machine permits no sufficient isolation; says what to install or to enable."""


@runtime_checkable
class Executor(Protocol):
    """Where programs run. An executor that cannot run a program raises ``SandboxError``; what a
    program does to itself is a ``Finished``."""

    async def run(self, program: Program, limits: Limits) -> Finished: ...

    def describe(self) -> str:
        """What stands between the program and the host, for people."""


@runtime_checkable
class PairExecutor(Executor, Protocol):
    """An executor that can also let two programs talk, each in a box of its own."""

    async def run_pair(
        self, asked: Program, asking: Program, limits: Limits
    ) -> tuple[Finished, Finished]:
        """Stdout of either is stdin of the other; both end when ``asking`` does."""
