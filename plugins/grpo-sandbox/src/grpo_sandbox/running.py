"""Run something in the sandbox by hand."""

from __future__ import annotations

from collections.abc import Mapping

from grpo_sandbox.local import LocalExecutor
from grpo_sandbox.program import Finished, Limits, Program


def run_python(
    code: str,
    *,
    stdin: str = "",
    files: Mapping[str, str] | None = None,
    limits: Limits | None = None,
    executor: LocalExecutor | None = None,
) -> Finished:
    """Run a Python program in a box of its own and wait for its end.

    Args:
        files: further files beside it, ``/work/NAME`` for the program.
        executor: ``None`` for one with its defaults.

    Raises:
        IsolationError: this machine permits no isolation.
        SandboxError: the box failed.
    """
    program = Program(files={**(files or {}), "main.py": code}, stdin=stdin.encode())
    return (executor or LocalExecutor()).run_blocking(program, limits or Limits())


def run_command(
    *argv: str,
    stdin: str = "",
    files: Mapping[str, str] | None = None,
    limits: Limits | None = None,
    executor: LocalExecutor | None = None,
) -> Finished:
    """Run a command of the host's, by its full path: ``run_command("/bin/ls", "/work")``."""
    program = Program(
        files=files or {}, main=argv[0], args=argv[1:], language="command", stdin=stdin.encode()
    )
    return (executor or LocalExecutor()).run_blocking(program, limits or Limits())
