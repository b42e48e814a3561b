"""What no file may do, and how long it may be."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

MOST_LINES = 400
MOST_LINES_OF_THE_LOOP = 40
LOOP = "grpo_core.trainer.loop"

BACKENDS = {
    *("accelerate", "cpu", "cuda", "deepspeed", "fsdp", "hf", "huggingface", "numpy", "peft"),
    *("ray", "sglang", "torch", "transformers", "trl", "vllm"),
}

UNSAFE_MODULES = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
UNSAFE_CALLS = {
    *("eval", "exec", "os.popen", "os.system", "torch.load", "torch.save", "yaml.load"),
    *("yaml.unsafe_load", "yaml.full_load"),
}
UNSAFE_ARGUMENTS = {"allow_pickle", "shell", "trust_remote_code"}

UNSAFE_ALLOWED = {
    # Requests to a worker process of our own; what comes back from it is JSON.
    ("grpo_core.scoring.processes", "pickle"),
    ("grpo_core.scoring.worker", "pickle"),
}

SWALLOWING_ALLOWED = {
    "grpo_core.cli.completion",  # a traceback in the middle of the line that is being typed
}


def unsafe(code) -> list[str]:
    """Pickle in any form, code from strings, shells: what turns data into commands."""
    wrong = []
    for name, module in code.items():
        for found in module.imports:
            if (name, found.module) in UNSAFE_ALLOWED:
                continue
            if found.module.split(".")[0] in UNSAFE_MODULES:
                wrong.append(module.at(found.line, f"imports {found.module}"))
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.Call):
                continue
            if ast.unparse(node.func) in UNSAFE_CALLS:
                wrong.append(module.at(node.lineno, f"calls {ast.unparse(node.func)}"))
            for keyword in node.keywords:
                if keyword.arg in UNSAFE_ARGUMENTS and ast.unparse(keyword.value) == "True":
                    wrong.append(module.at(node.lineno, f"{keyword.arg}=True"))
    return wrong


def swallowed(code) -> list[str]:
    """Handlers that catch everything or do nothing: what turns failures into plausible numbers."""
    return [
        module.at(line, text)
        for name, module in code.items()
        if name not in SWALLOWING_ALLOWED
        for line, text in _swallowing(module.tree)
    ]


def _swallowing(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            if node.type is None:
                yield node.lineno, "except without a type"
            elif all(_does_nothing(statement) for statement in node.body):
                yield node.lineno, f"except {ast.unparse(node.type)} that does nothing"
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
            broad = {ast.unparse(a) for a in node.args} & {"Exception", "BaseException"}
            if broad:
                yield node.lineno, f"suppress({broad.pop()})"


def _does_nothing(statement: ast.stmt) -> bool:
    # A bare constant is `...` or a docstring.
    constant = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return constant or isinstance(statement, ast.Pass)


def too_long(code) -> list[str]:
    return [
        f"{module.path}: {lines} lines"
        for module in code.values()
        if (lines := module.source.count("\n")) > MOST_LINES
    ]


def backends_named(tree: ast.Module) -> set[str]:
    """Backends among all names of a file: what it imports, calls, reads and is called with."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.name for alias in node.names}
            names |= {alias.asname or "" for alias in node.names}
            names |= {getattr(node, "module", "") or ""}
        for field in ("id", "attr", "arg", "name"):
            value = getattr(node, field, None)
            names |= {value} if isinstance(value, str) else set()
    words = {word.lower() for name in names for word in re.split(r"[._]", name)}
    return {backend for backend in BACKENDS if any(word.startswith(backend) for word in words)}


def test_data_never_becomes_code(project) -> None:
    assert unsafe(project) == []


def test_no_failure_is_swallowed(project) -> None:
    assert swallowed(project) == []


def test_files_are_small(project) -> None:
    assert too_long(project) == []


def test_the_loop_names_no_backend(project) -> None:
    assert backends_named(project[LOOP].tree) == set()


def test_the_loop_is_read_in_a_minute(project) -> None:
    assert project[LOOP].source.count("\n") < MOST_LINES_OF_THE_LOOP


@pytest.mark.parametrize(
    ("rule", "source"),
    [
        (unsafe, "import pickle"),
        (unsafe, "def f():\n    from dill import loads"),
        (unsafe, "torch.load(path)"),
        (unsafe, "eval(text)"),
        (unsafe, "subprocess.run(line, shell=True)"),
        (unsafe, "load(path, trust_remote_code=True)"),
        (swallowed, "try:\n    f()\nexcept ValueError:\n    pass"),
        (swallowed, "try:\n    f()\nexcept ValueError:\n    ..."),
        (swallowed, "try:\n    f()\nexcept:\n    g()"),
        (swallowed, "with contextlib.suppress(OSError, Exception):\n    f()"),
        (too_long, "x = 1\n" * 401),
    ],
)
def test_each_rule_can_fail(parse, rule, source: str) -> None:
    assert rule(parse({"grpo_core.a": source}))


@pytest.mark.parametrize(
    ("rule", "source"),
    [
        (unsafe, "model.eval()\nyaml.safe_load(text)\nload(path, trust_remote_code=trust)"),
        (swallowed, "try:\n    f()\nexcept ValueError as error:\n    raise A from error"),
        (too_long, "x = 1\n" * 400),
    ],
)
def test_each_rule_lets_good_code_through(parse, rule, source: str) -> None:
    assert rule(parse({"grpo_core.a": source})) == []


@pytest.mark.parametrize(
    "source",
    ["import torch", "from grpo_core.x import HFGenerator as G", "run.vllm.sync()", "f(cuda=True)"],
)
def test_a_backend_is_seen(source: str) -> None:
    assert backends_named(ast.parse(source))
