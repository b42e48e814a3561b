"""The forms in which datasets bring tests."""

from __future__ import annotations

import json
from typing import Any

import pytest

from grpo_core.errors import DataError
from grpo_sandbox.cases import AssertTest, CallTest, StdinTest, cases
from grpo_sandbox.extract import last_block

pytestmark = pytest.mark.xdist_group("sandbox")

OPEN_R1 = {"language": "python", "test_cases": [
    {"fn_name": None, "input": "1\n", "output": "2\n", "type": "stdin_stdout"}]}  # fmt: skip


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"verification_info": OPEN_R1}, StdinTest(stdin="1\n", expected="2\n")),
        ({"verification_info": json.dumps(OPEN_R1)}, StdinTest(stdin="1\n", expected="2\n")),
        (
            {"input_output": '{"inputs": ["1\\n"], "outputs": ["2\\n"]}'},
            StdinTest(stdin="1\n", expected="2\n"),
        ),
        (
            {"input_output": {"inputs": [["1", "2"]], "outputs": [["3"]]}},
            StdinTest(stdin="1\n2", expected="3"),
        ),
        (
            {"input_output": {"fn_name": "f", "inputs": [[1, [2]]], "outputs": [[3]]}},
            CallTest(name="f", args=[1, [2]], kwargs={"d": []}, expected=([3], 3),
                     tuples_are_lists=True),
        ),
        (
            {"public_test_cases": '[{"input": "1", "output": "2", "testtype": "stdin"}]'},
            StdinTest(stdin="1", expected="2"),
        ),
        (
            {
                "public_test_cases": [
                    {"input": "[1]\n\"a\"", "output": "true", "testtype": "functional"}
                ],
                "metadata": '{"func_name": "f"}',
            },
            CallTest(name="f", args=[[1], "a"], kwargs={"d": []}, expected=(True,),
                     tuples_are_lists=True),
        ),
        (
            {"test_list": ["assert f('a', k=2) == (1, {2})"]},
            CallTest(name="f", args=["a"], kwargs={"d": [["k", 2]]},
                     expected=({"t": [1, {"s": [2]}]},)),
        ),
        ({"tests": [{"stdin": "a", "stdout": "b", "weight": 2}]},
         StdinTest(stdin="a", expected="b", weight=2.0)),
        ({"tests": [{"stdin": "a", "stdout": "b", "call": None, "weight": None}]},
         StdinTest(stdin="a", expected="b")),
        ({"tests": [{"call": "f", "args": [1], "expected": None}]},
         CallTest(name="f", args=[1], kwargs={"d": []}, expected=(None,), tuples_are_lists=True)),
        ({"tests": [{"assert": "assert f(1) == -2", "weight": 3}]},
         CallTest(name="f", args=[1], kwargs={"d": []}, expected=(-2,), weight=3.0)),
    ],
    ids=["open-r1", "open-r1-json", "apps", "apps-lines", "apps-call", "lcb", "lcb-call", "mbpp",
         "own", "own-parquet", "own-call", "own-assert"],
)  # fmt: skip
def test_a_form_is_read(columns: dict[str, Any], expected: object) -> None:
    assert cases(columns) == [expected]


def test_humaneval_is_called_with_its_entry_point() -> None:
    code = "def check(candidate):\n    assert candidate(1) == 2"
    (found,) = cases({"test": code, "entry_point": "inc"}) or ()
    assert isinstance(found, AssertTest)
    assert found.code.endswith("check(inc)")
    assert "inc" in found.names


def test_mbpps_setup_comes_first() -> None:
    (found,) = cases({"test_list": ["assert f(x) == 1"], "test_setup_code": "x = 1"}) or ()
    assert isinstance(found, AssertTest)
    assert found.code.startswith("x = 1\n")


@pytest.mark.parametrize("code", ["assert f(1) == g(2)", "assert f(x) == 1", "assert max(1) == 1"])
def test_what_is_no_call_with_a_value_is_test_code(code: str) -> None:
    assert isinstance((cases({"test_list": [code]}) or [])[0], AssertTest)


def test_built_in_functions_stay_pythons_own() -> None:
    (found,) = cases({"test": "assert sorted(f(1)) == [1]"}) or ()
    assert isinstance(found, AssertTest)
    assert found.names == ("f",)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"answer": 5}, "looked for tests.*has: answer"),
        ({"tests": []}, "no tests in it"),
        ({"tests": [{"stdin": "a"}]}, "no known form.*stdout"),
        ({"tests": {"x": 1}}, "no known form.*x"),
        ({"tests": 5}, "no known form"),
        ({"tests": [{"stdin": "a", "stdout": "b", "weight": -1}]}, "positive"),
        ({"input_output": {"inputs": ["a"], "outputs": []}}, "1 inputs but 0 outputs"),
        ({"test_list": ["assert f("]}, "no Python"),
        ({"test": "eJxblM=="}, "no Python"),  # LiveCodeBench's private tests: a pickle, not read
        ({"test_cases": [{"input": "1", "output": "2", "testtype": "functional"}]}, "fn_name"),
        ({"public_test_cases": [{"input": "1", "output": "2", "testtype": "magic"}]}, "magic"),
    ],
)  # fmt: skip
def test_data_without_tests_is_an_error(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        cases(columns)


def test_null_is_no_tests() -> None:
    assert cases({"tests": None}) is None


PY = ("python", "py")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("```python\na\n```", "a\n"),
        ("```py\na\n```\nand\n```python\nb\n```\n", "b\n"),
        ("```python\na\n```\n```\noutput\n```", "a\n"),
        ("```python\na\n```\n```python\nb", "a\n"),  # the second was cut off
        ("```Python title=x\na\n```", "a\n"),
        ("````python\n```\na\n```\n````", "```\na\n```\n"),
        ("~~~py\na\n~~~", "a\n"),
        ("```python\ns = '''\n    ```\n'''\n```", "s = '''\n    ```\n'''\n"),
        ("```python\n```", ""),
        ("```javascript\na\n```", None),
        ("```\na\n```", None),
        ("a = 1", None),
        ("```python a = 1 ```", None),
        ("", None),
    ],
)
def test_the_last_block_is_the_program(text: str, code: str | None) -> None:
    assert last_block(text, PY) == code


def test_untagged_blocks_can_be_asked_for() -> None:
    assert last_block("```\na\n```", ("python", "")) == "a\n"
