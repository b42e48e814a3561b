"""One program, one test. The verdict is made here, or in a box that the program is not in."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from grpo_core.errors import ConfigError
from grpo_sandbox.cases import AssertTest, CallTest, Case, StdinTest
from grpo_sandbox.compare import StdoutRule, parse, same_stdout, same_value
from grpo_sandbox.program import Executor, Finished, Limits, PairExecutor, Program

ENTRY = """\
import os, sys
folder = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, folder)
from grpo_sandbox.inside.{module} import main
main(folder)
"""


class UnfitTestError(ValueError):
    """A test that cannot tell anything about a program: it asks for what cannot be had here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Example: ``Verdict(passed=False, why="exit status 1: ZeroDivisionError: ...")``."""

    passed: bool
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Grader:
    """Runs tests and compares. Example: ``Grader(executor=LocalExecutor())``."""

    executor: Executor
    limits: Limits = field(default_factory=Limits)
    language: str = "python"
    stdout_rule: StdoutRule = "lines"
    tolerance: float = 0.0

    async def grade(self, code: str, case: Case) -> Verdict:
        """Raises:
        SandboxError: the box failed; nothing is known about the program.
        UnfitTestError: the test cannot be run, whatever the program is.
        """
        if isinstance(case, StdinTest):
            return await self._stdin(code, case)
        if self.language != "python":
            raise ConfigError(f"call and assert tests need python, not {self.language!r}")
        if isinstance(case, CallTest):
            return await self._call(code, case)
        return await self._assert(code, case)

    async def _stdin(self, code: str, case: StdinTest) -> Verdict:
        stdin = case.stdin.encode("utf-8", "surrogatepass")
        program = Program(files={"main.py": code}, language=self.language, stdin=stdin)
        finished = await self.executor.run(program, self.limits)
        if not finished.ok:
            return Verdict(passed=False, why=finished.summary())
        same = same_stdout(
            case.expected, finished.stdout, rule=self.stdout_rule, tolerance=self.tolerance
        )
        return Verdict(passed=same, why="" if same else f"wrote {_shown(finished.stdout)}")

    async def _call(self, code: str, case: CallTest) -> Verdict:
        question = {"name": case.name, "args": case.args, "kwargs": case.kwargs or {"d": []}}
        finished = await self.executor.run(
            _candidate(code, "once", json.dumps(question).encode()), self.limits
        )
        answer = parse(finished.stdout) if finished.ok else None
        if answer is None:
            return Verdict(passed=False, why=_no_answer(finished))
        same = any(
            same_value(
                expected,
                answer[0],
                tuples_are_lists=case.tuples_are_lists,
                tolerance=self.tolerance,
            )
            for expected in case.expected
        )
        return Verdict(passed=same, why="" if same else f"returned {_shown(finished.stdout)}")

    async def _assert(self, code: str, case: AssertTest) -> Verdict:
        if not isinstance(self.executor, PairExecutor):
            raise UnfitTestError(
                f"{self.executor.describe()} cannot run free test code: that takes two programs "
                "that talk to each other. `assert f(1) == 2` and calls with values can be run"
            )
        files = {"tests.py": case.code, **_ours("judge")}
        asking = Program(files=files, args=(json.dumps(case.names),))
        asked, judged = await self.executor.run_pair(
            _candidate(code, "many", b""), asking, self.limits
        )
        told = parse(judged.stderr) if judged.ok else None
        if told is None:  # only a hostile answer brings the judge to its own limits
            return Verdict(passed=False, why=f"no verdict: {judged.summary()}")
        verdict, why = told[0]["verdict"], told[0]["why"]
        if verdict == "invalid":
            raise UnfitTestError(f"{why}; the test begins {case.code[:100]!r}")
        if verdict != "passed" and not asked.ok:
            why = f"{why} ({asked.summary()})"
        return Verdict(passed=verdict == "passed", why=why)


def _candidate(code: str, mode: str, stdin: bytes) -> Program:
    return Program(files={"solution.py": code, **_ours("candidate")}, args=(mode,), stdin=stdin)


@cache
def _ours(module: str) -> dict[str, str]:
    here = Path(__file__).parent
    names = ("plain.py", "inside/__init__.py", f"inside/{module}.py")
    files = {f"grpo_sandbox/{name}": (here / name).read_text("utf-8") for name in names}
    # Without what the real one imports, which is not there.
    return {"main.py": ENTRY.format(module=module), "grpo_sandbox/__init__.py": "", **files}


def _no_answer(finished: Finished) -> str:
    return "no value was returned" if finished.ok else finished.summary()


def _shown(text: bytes) -> str:
    return repr(text[:200].decode("utf-8", "replace"))
