"""The reward `code`: values, and what is told apart from a wrong program."""

from __future__ import annotations

import asyncio
import venv
from pathlib import Path

import pytest
from pydantic import ValidationError

from grpo_core.errors import ConfigError, DataError
from grpo_core.testing import PluginSuite
from grpo_core.types import Abstained, Failed, Value
from grpo_sandbox import isolation
from grpo_sandbox.config import CodeConfig, LocalSettings
from grpo_sandbox.local import LocalExecutor
from grpo_sandbox.program import IsolationError, Limits, Program, SandboxError
from grpo_sandbox.reward import Code
from grpo_sandbox.running import run_command

pytestmark = pytest.mark.xdist_group("sandbox")


class TestPlugin(PluginSuite):
    distribution = "grpo-sandbox"
    package = "grpo_sandbox"


def block(code: str) -> str:
    return f"Here it is:\n```python\n{code}\n```\n"


RIGHT = block("def add(a, b): return a + b")
HALF = block("def add(a, b): return 3")
WRONG = block("def add(a, b): return 0")
TESTS = {"tests": [
    {"call": "add", "args": [1, 2], "expected": 3, "weight": 3},
    {"call": "add", "args": [2, 2], "expected": 4, "weight": 1},
]}  # fmt: skip


def score(executor, make_request, columns, *texts, **options):
    provider = Code(CodeConfig.model_validate(options), executor=executor)
    return asyncio.run(provider.score(make_request(columns, *texts)))


@pytest.mark.parametrize(
    ("scoring", "values"),
    [
        ("pass-fail", [1.0, 0.0, 0.0, -1.0]),
        ("fraction", [1.0, 0.5, 0.0, -1.0]),
        ("weighted", [1.0, 0.75, 0.0, -1.0]),
    ],
)
def test_values(executor, make_request, scoring: str, values: list[float]) -> None:
    texts = (RIGHT, HALF, WRONG, "no idea")
    outcomes = score(executor, make_request, TESTS, *texts, scoring=scoring, no_code=-1)
    assert outcomes == [Value(value=value) for value in values]


def test_no_code_is_zero_unless_said(executor, make_request) -> None:
    assert score(executor, make_request, TESTS, "none") == [Value(value=0.0)]


def test_null_abstains_and_no_column_stops(executor, make_request) -> None:
    (outcome,) = score(executor, make_request, {"tests": None}, RIGHT)
    assert isinstance(outcome, Abstained)
    with pytest.raises(DataError, match="no column with tests"):
        score(executor, make_request, {"answer": 1}, RIGHT)


class Counting:
    """A real executor that counts, and may break down."""

    def __init__(self, inner: LocalExecutor, broken: str = "") -> None:
        self.inner, self.broken, self.runs = inner, broken, 0

    def describe(self) -> str:
        return "counting"

    async def run(self, program: Program, limits: Limits):
        self.runs += 1
        if self.broken and self.broken in program.files["solution.py"]:
            raise SandboxError("the machine is on fire")
        return await self.inner.run(program, limits)


def test_a_broken_sandbox_is_a_failure_and_never_a_zero(executor, make_request) -> None:
    counting = Counting(executor, broken="return 3")
    outcomes = score(counting, make_request, TESTS, RIGHT, HALF, WRONG)
    assert outcomes[0] == Value(value=1.0)
    assert outcomes[1] == Failed(kind="error", reason="the machine is on fire")
    assert outcomes[2] == Value(value=0.0)


def test_equal_programs_are_run_once_and_failing_ones_no_further(executor, make_request) -> None:
    counting = Counting(executor)
    outcomes = score(counting, make_request, TESTS, WRONG, WRONG, WRONG)
    assert outcomes == [Value(value=0.0)] * 3
    assert counting.runs == 1


def test_a_test_that_cannot_be_run_is_invalid(executor, make_request) -> None:
    columns = {"test": "assert apply(lambda x: x) == 1"}
    (outcome,) = score(executor, make_request, columns, block("def apply(f): return f(1)"))
    assert isinstance(outcome, Failed)
    assert outcome.kind == "invalid"


def test_a_box_that_is_killed_from_outside_is_no_verdict(executor, programs_of, until) -> None:
    """The launcher dies, as when the kernel's out-of-memory killer takes it."""
    import os
    import signal
    import threading

    def kill() -> None:
        if until(lambda: programs_of(os.getpid(), "/work/main.py\0--victim")):
            os.kill(programs_of(os.getpid(), "grpo_sandbox.inside")[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    program = Program(files={"main.py": "import time; time.sleep(600)"}, args=("--victim",))
    with pytest.raises(SandboxError, match=r"without a word|killed from outside"):
        executor.run_blocking(program, Limits(wall_s=300))
    killer.join()


def test_cancelling_ends_the_program(executor) -> None:
    async def impatient() -> None:
        program = Program(files={"main.py": "import time; time.sleep(60)"})
        await asyncio.wait_for(executor.run(program, Limits(wall_s=120)), 0.5)

    with pytest.raises(TimeoutError):
        asyncio.run(impatient())
    # Its place is free again at once.
    done = asyncio.run(executor.run(Program(files={"main.py": "print(1)"}), Limits(wall_s=60)))
    assert done.stdout == b"1\n"


def test_without_isolation_it_refuses_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "probe", lambda: "unshare: Operation not permitted")
    with pytest.raises(IsolationError, match=r"unshare: Operation not permitted.*unsafe: true"):
        Code().describe()


def test_unsafe_is_a_choice_and_still_cleans_up(
    monkeypatch: pytest.MonkeyPatch, host_unchanged
) -> None:
    monkeypatch.setattr(isolation, "probe", lambda: "unshare: Operation not permitted")
    config = CodeConfig(executor=LocalSettings(unsafe=True))
    assert Code(config).describe().startswith("unsafe")
    executor = LocalExecutor(unsafe=True)
    code = """
import os, time
print(open("/work/x" if os.path.exists("/work/x") else __file__).read(3))
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(3600)
    os._exit(0)
"""
    program = Program(files={"main.py": code})
    finished = executor.run_blocking(program, Limits(cpu_s=5, wall_s=60))
    assert finished.ok, finished
    spin = Program(files={"main.py": "import time; time.sleep(60)"})
    assert executor.run_blocking(spin, Limits(wall_s=0.5)).reason == "wall time"


def test_isolation_is_taken_away_for_real() -> None:
    """Where user namespaces are forbidden by the kernel's own switch, the probe finds out."""
    import os
    import subprocess
    import sys

    if os.geteuid() != 0 or isolation.probe() is not None:
        pytest.skip("needs root, to forbid itself namespaces")
    code = """
import ctypes, resource
from pathlib import Path
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x10000000) == 0
Path("/proc/sys/user/max_user_namespaces").write_text("0")
from grpo_sandbox import LocalExecutor, IsolationError
try:
    LocalExecutor()
except IsolationError as error:
    print("refused:", error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if "PermissionError" in done.stderr:
        pytest.skip("this kernel does not let a namespace limit its own")
    assert done.stdout.startswith("refused:"), done.stderr


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "", "a//b", "a\0b"])
def test_a_file_outside_of_the_program_is_refused(executor, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be a program's file"):
        executor.run_blocking(Program(files={name: "x"}), Limits())


def test_folders_that_would_show_the_host_are_refused(executor) -> None:
    with pytest.raises(ConfigError, match="name a folder in it"):
        LocalExecutor(read_only=("/",))
    with pytest.raises(ConfigError, match="not there"):
        LocalExecutor(read_only=("/nowhere",))


def test_a_named_interpreter_brings_its_packages(executor, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    (packages,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (packages / "abacus.py").write_text("def add(a, b): return a + b")
    tables = tmp_path / "tables"
    tables.mkdir()
    (tables / "one.txt").write_text("1")
    code = f"import abacus; print(abacus.add(1, int(open({str(tables / 'one.txt')!r}).read())))"
    named = LocalExecutor(python=str(tmp_path / "venv/bin/python"), read_only=(str(tables),))
    program = Program(files={"main.py": code})
    assert named.run_blocking(program, Limits()).stdout == b"2\n"
    assert not executor.run_blocking(program, Limits()).ok
    shut = Program(files={"main.py": f"open({str(tables / 'two.txt')!r}, 'w')"})
    assert b"Read-only file system" in named.run_blocking(shut, Limits()).stderr


def test_commands_run_too(executor) -> None:
    shell = run_command("/bin/sh", "-c", "cat; exit 3", stdin="x", executor=executor)
    assert (shell.stdout, shell.code) == (b"x", 3)
    assert run_command("/bin/cat", "/work/a", files={"a": "b"}, executor=executor).stdout == b"b"


def test_misspelt_options_are_errors() -> None:
    with pytest.raises(ValidationError):
        CodeConfig.model_validate({"executor": {"kind": "piston"}})
