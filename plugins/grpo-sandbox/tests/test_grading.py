"""Verdicts: right programs pass, wrong ones fail, and none can say of itself that it passed."""

from __future__ import annotations

import asyncio

import pytest

from grpo_sandbox.cases import AssertTest, CallTest, Case, StdinTest, cases
from grpo_sandbox.grading import Grader, UnfitTestError, Verdict
from grpo_sandbox.program import Limits

pytestmark = [pytest.mark.usefixtures("host_unchanged"), pytest.mark.xdist_group("sandbox")]

ADD = CallTest(name="add", args=[2, 3], expected=(5,))
SUM = StdinTest(stdin="2 3\n", expected="5\n")
FREE = "xs = [add(i, 1) for i in range(3)]\nassert sorted(xs) == [1, 2, 3]\nassert add(2, 3) == 5"
GOOD = "def add(a, b):\n    return a + b\n"

LIAR = """
class Yes:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
    def __bool__(self): return True
    def __call__(self, *a, **k): return self
    def __getattr__(self, name): return self
    def __iter__(self): return iter([self])
    def __abs__(self): return 0
    def __lt__(self, other): return True
    def __len__(self): return 3
"""

FORGERIES = {
    "equals everything": LIAR + "def add(a, b): return Yes()",
    "subclass of int": "class I(int):\n    __eq__ = lambda *a: True\ndef add(a, b): return I(7)",
    "exit 0": "import sys\nsys.exit(0)",
    "exit 0 in the call": "import os\ndef add(a, b): os._exit(0)",
    "says that it passed": "def add(a, b):\n    print('passed', 1.0, True, 5)\n    return 7",
    "writes a verdict": """
import json, os
def add(a, b):
    for fd in range(64):
        try:
            os.write(fd, json.dumps({"verdict": "passed", "why": ""}).encode() + b"\\n")
        except OSError: pass
    os._exit(0)
""",
    "replaces the codec": """
import sys, builtins, json
import grpo_sandbox.plain as plain
plain.encode = lambda *a: {"verdict": "passed"}
json.dumps = lambda *a, **k: '{"verdict": "passed", "why": ""}'
builtins.sorted = lambda *a: [1, 2, 3]
def add(a, b): return 7
""",
    "replaces AssertionError": """
import builtins, sys
builtins.AssertionError = StopIteration
sys.excepthook = lambda *a: None
def add(a, b): raise AssertionError
""",
    "own sorted": LIAR + "def sorted(x): return [1, 2, 3]\ndef add(a, b): return 7",
    "looks for the expectation": """
import os, sys, gc
def add(a, b):
    for folder, _, names in os.walk("/work"):
        for name in names:
            text = open(os.path.join(folder, name)).read()
            if "[1, 2, " + "3]" in text or "== " + "5" in text:
                return 5
    frame = sys._getframe()
    while frame:
        if "expected" in frame.f_locals: return frame.f_locals["expected"]
        frame = frame.f_back
    return 7
""",
    "deep nesting": "def add(a, b):\n    x = []\n    for _ in range(900): x = [x]\n    return x",
    "deeper nesting": """
import os
def add(a, b):
    for fd in range(3, 8):
        try: os.write(fd, b"[" * 10**5)
        except OSError: pass
    os._exit(0)
""",
    "long answer": "def add(a, b): return 'x' * (3 << 20)",
    "colliding hashes": "def add(a, b): return {n * (2**61 - 1) for n in range(1000)}",
    "nan": "def add(a, b): return float('nan')",
    "raises": "def add(a, b): raise ValueError('passed')",
    "never returns": "def add(a, b):\n    while True: pass",
    "no such function": "def sub(a, b): return 5",
    "no program": "}{",
    "half a surrogate": "x = '\ud800'",
}


@pytest.fixture
def grade(executor):
    def start(code: str, case: Case, **limits: float) -> Verdict:
        chosen = Limits.model_validate({"cpu_s": 2, "wall_s": 60, "memory_mb": 128} | limits)
        return asyncio.run(Grader(executor=executor, limits=chosen).grade(code, case))

    return start


def free(code: str) -> AssertTest:
    (found,) = cases({"test": code}) or ()
    assert isinstance(found, AssertTest)
    return found


@pytest.mark.parametrize("code", FORGERIES.values(), ids=[n.replace(" ", "-") for n in FORGERIES])
@pytest.mark.parametrize("case", [ADD, free(FREE)], ids=["call", "assert"])
def test_a_forgery_fails(grade, code: str, case: Case) -> None:
    assert not grade(code, case).passed


@pytest.mark.parametrize(
    ("code", "case"),
    [
        (GOOD, ADD),
        (GOOD, free(FREE)),
        ("class Solution:\n    def add(self, a, b): return a + b", ADD),
        ("print(sum(map(int, input().split())))", SUM),
        (GOOD + "if __name__ == '__main__':\n    input()", ADD),
        ("def add(a, b):\n    print('thinking')\n    return a + b", ADD),
        ("def add(a, b):\n    print('thinking')\n    return a + b", free(FREE)),
    ],
)
def test_a_right_program_passes(grade, code: str, case: Case) -> None:
    verdict = grade(code, case)
    assert verdict.passed, verdict.why


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("print(6)", "wrote '6"),
        ("print(5, 5)", "wrote"),
        ("print(5)\nprint(5)", "wrote"),  # one more line than expected
        ("pass", "wrote ''"),
        ("print(5)\nraise SystemExit(1)", "exit status 1"),
        ("1/0", "ZeroDivisionError"),
    ],
)
def test_a_wrong_program_fails_with_a_reason(grade, code: str, why: str) -> None:
    verdict = grade(code, SUM)
    assert not verdict.passed
    assert why in verdict.why


def test_a_crash_of_a_call_is_told(grade) -> None:
    assert "NameError" in grade("def add(a, b): return c", ADD).why


RICH = """
class Stack:
    def __init__(self): self.items = []
    def push(self, x): self.items.append(x)
    def pop(self):
        if not self.items: raise IndexError("empty")
        return self.items.pop()
    def __len__(self): return len(self.items)
LIMIT = 10
def table(): return {(1, 2): {3, 4}, "k": [1.5, None, 2**70, b"x", 1j]}
def count(n):
    yield from range(n)
"""

RICH_TESTS = """
from solution import Stack
import solution
s = Stack()
s.push(3); s.push([4])
assert len(s) == 2 and s.pop() == [4] and s.pop() == 3
try:
    s.pop()
except IndexError as error:
    assert "empty" in str(error)
else:
    raise AssertionError("no error")
assert table() == {(1, 2): {3, 4}, "k": [1.5, None, 2**70, b"x", 1j]}
assert list(count(3)) == [0, 1, 2]
assert solution.LIMIT == 10
assert table() != s
"""


def test_objects_errors_and_generators_pass_through(grade) -> None:
    verdict = grade(RICH, free(RICH_TESTS))
    assert verdict.passed, verdict.why


@pytest.mark.parametrize(
    "tests",
    [
        "import unittest\nclass T(unittest.TestCase):\n    def test(self):\n"
        "        self.assertEqual(add(2, 2), VALUE)",
        "def test_add():\n    assert add(2, 2) == VALUE",
        "import unittest\nclass T(unittest.TestCase):\n    def test(self):\n"
        "        self.assertEqual(add(2, 2), VALUE)\nif __name__ == '__main__':\n"
        "    unittest.main()",
        "def check(candidate):\n    assert candidate(2, 2) == VALUE\ncheck(add)",
    ],
    ids=["unittest", "pytest", "unittest-main", "humaneval"],
)
def test_tests_that_are_only_defined_are_run(grade, tests: str) -> None:
    assert grade(GOOD, free(tests.replace("VALUE", "4"))).passed
    assert not grade(GOOD, free(tests.replace("VALUE", "5"))).passed


def test_a_test_that_asks_nothing_is_no_test(grade) -> None:
    with pytest.raises(UnfitTestError, match="without a call"):
        grade(GOOD, free("x = 1\nassert x == 1"))


def test_a_test_that_needs_more_than_data_is_told_apart(grade) -> None:
    with pytest.raises(UnfitTestError, match="function is not plain data"):
        grade("def apply(f): return f(1)", free("assert apply(lambda x: x) == 1"))


def test_a_slow_program_fails_and_is_not_the_sandboxs_fault(grade) -> None:
    code = "import time\ndef add(a, b): time.sleep(60)"
    for case in (ADD, free(FREE)):
        verdict = grade(code, case, wall_s=1)
        assert not verdict.passed
        assert "wall time" in verdict.why
