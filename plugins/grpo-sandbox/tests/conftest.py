"""A real sandbox, or a named reason why there is none; a look at the host after each program."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from grpo_core.types import Prompt, Rollout, ScoreRequest, Span
from grpo_sandbox import isolation
from grpo_sandbox.local import LocalExecutor
from grpo_sandbox.program import Finished, Limits, Program

Run = Callable[..., Finished]


@pytest.fixture(scope="session")
def executor() -> Iterator[LocalExecutor]:
    why = isolation.probe()
    if why is not None:
        command = ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--net"]
        mounts = "mount -t tmpfs none /tmp"
        permitted = subprocess.run([*command, "sh", "-c", mounts], capture_output=True, check=False)
        # The kernel's word, not ours: a box of ours that does not hold is no reason to skip.
        assert permitted.returncode != 0, f"namespaces are permitted here, but: {why}"
        pytest.skip(f"this machine permits no namespaces: {permitted.stderr.decode()} {why}")
    executor = LocalExecutor(concurrency=2)
    yield executor
    executor.close()


@pytest.fixture
def run(executor: LocalExecutor) -> Run:
    """``run(code, cpu_s=1, ...)``: a Python program to its end."""

    def start(code: str, *, stdin: bytes = b"", **limits: float) -> Finished:
        chosen = Limits.model_validate({"cpu_s": 5, "wall_s": 60, "memory_mb": 128} | limits)
        return executor.run_blocking(Program(files={"main.py": code}, stdin=stdin), chosen)

    return start


def marked(mark: str) -> list[str]:
    """Command lines of all processes that have ``mark`` in them or in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        pid = int(folder.name)
        if mark.encode() in line and pid != os.getpid() and not of_another_worker(pid):
            shown = line.replace(b"\0", b" ").decode(errors="replace")[:200]
            found.append(f"{pid} {shown}")
    return found


def ancestors(pid: int) -> list[int]:
    """The process and those above it, as far as they are alive."""
    found: list[int] = []
    while pid > 1:
        found.append(pid)
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            break
        pid = int(stat.rpartition(")")[2].split()[1])
    return found


def of_another_worker(pid: int) -> bool:
    """Whether another process of the same test run started it: of an orphan nobody can tell, and
    it counts."""
    above = ancestors(pid)
    return os.getppid() in above and os.getpid() not in above


@pytest.fixture(scope="session")
def programs_of() -> Callable[..., list[int]]:
    """``programs_of(process, "main.py")``: those that came from a process and have such a command
    line; others that test at the same time are left alone."""

    def find(process: int, words: str) -> list[int]:
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if words.encode() in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
        return [pid for pid in found if pid != process and process in ancestors(pid)]

    return find


def host() -> set[str]:
    """What a program could leave behind."""
    children = [
        child
        for task in Path("/proc/self/task").iterdir()
        for child in (task / "children").read_text().split()
    ]
    return {
        *(f"file {p}" for p in os.listdir("/tmp") if "escaped" in p or "grpo-unsafe" in p),
        *(f"descriptor {count}" for count, _ in enumerate(os.listdir("/proc/self/fd"))),
        *(f"program {p}" for p in marked("/work/main.py") + marked("grpo_sandbox.inside")),
        *(f"child {pid}" for pid in children),
    }


@pytest.fixture
def host_unchanged(until: Callable[[Callable[[], object]], bool]) -> Iterator[None]:
    """No process, no file, no descriptor stays behind."""
    before = host()
    yield
    # What the test before was still ending may be gone; nothing may be new.
    assert until(lambda: not host() - before), host() - before


def request(columns: dict[str, object], *texts: str) -> ScoreRequest:
    prompt = Prompt(id="train/17", content="Write a program.", columns=columns)
    rollouts = [
        Rollout(
            prompt=prompt,
            prompt_ids=(1,),
            group=0,
            sample=sample,
            spans=(Span(token_ids=(2,), logprobs=(-0.5,), policy_version=0),),
            text=text,
            finish_reason="stop",
        )
        for sample, text in enumerate(texts)
    ]
    return ScoreRequest(step=0, rollouts_B=tuple(rollouts))


@pytest.fixture
def make_request() -> Callable[..., ScoreRequest]:
    return request
