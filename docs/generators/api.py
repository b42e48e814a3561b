"""docs/reference/api.md: the public Python names, from their source."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from generators.source import (
    cell,
    code,
    definition,
    docstring,
    fields,
    is_property,
    methods,
    module,
    prose,
    segment,
    signature,
    table,
)

INTRODUCTION = """\
# Python API

Import from `grpo_core` what the first section lists, everything else from the module named above
it. `ModelSettings`, `OptimizerSettings`, `TrainSettings`, `SamplingParams` and
`EvaluationSettings` (all from `grpo_core`) are the sections of a [config](config.md), with the
same fields. Losses, generators, rewards and so on are in [components](components.md); each is a
class that its package exports.

Suffixes of names tell shapes: `_P` prompts, `_G` members of a group, `_B` rollouts, `_N` action
tokens, `_F` reward providers.
"""

RUNNING = (
    ("grpo_core/trainer/loop.py", "train"),
    ("grpo_core/run.py", "load_run"),
    ("grpo_core/trainer/run.py", "Run"),
    ("grpo_core/trainer/result.py", "RunResult"),
    ("grpo_core/rewards.py", "Reward"),
    ("grpo_core/policy/policy.py", "Policy"),
    ("grpo_core/protocols.py", "BuildContext"),
)
TYPES = ("prompts", "rollouts", "generation", "turns", "rewards", "tokens", "saving", "events")
VERBS_OF_THE_LOOP = ("Run",)
"""Only the constructor is for users; the loop itself documents the rest."""


def lines() -> Iterator[str]:
    yield INTRODUCTION
    yield "## Running"
    yield ""
    yield "`Reward` is imported from `grpo_core.rewards`, `RunResult` is what `train` returns."
    for path, name in RUNNING:
        yield from _entry(path, name)
    yield from _module("Roles: `grpo_core.protocols`", "grpo_core/protocols.py", "BuildContext")
    yield from ("", "## Types: `grpo_core.types`", "")
    yield prose(ast.get_docstring(module("grpo_core/types/__init__.py")) or "")
    public = _exported("grpo_core/types/__init__.py")
    for name in TYPES:
        path = f"grpo_core/types/{name}.py"
        for entry in _names(path):
            if entry in public:
                yield from _entry(path, entry)
    yield from _module("Errors: `grpo_core.errors`", "grpo_core/errors.py")
    yield from ("", "## Testing: `grpo_core.testing`", "")
    yield prose(ast.get_docstring(module("grpo_core/testing/__init__.py")) or "")
    yield from _entry("grpo_core/testing/scripted.py", "ScriptedGenerator")


def _module(title: str, path: str, *without: str) -> Iterator[str]:
    yield from ("", f"## {title}", "", prose(ast.get_docstring(module(path)) or ""))
    for name in _names(path):
        if name not in without:
            yield from _entry(path, name)


def _names(path: str) -> Iterator[str]:
    """Public classes, functions and documented aliases, in the order of the file."""
    for node in module(path).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
            yield node.name
        elif isinstance(node, ast.Assign):
            name = ast.unparse(node.targets[0])
            if not name.startswith("_") and name[0].isupper():
                yield name


def _exported(path: str) -> list[str]:
    node = definition(path, "__all__")
    assert isinstance(node, ast.Assign)
    names: list[str] = ast.literal_eval(node.value)
    return names


def _entry(path: str, name: str) -> Iterator[str]:
    node = definition(path, name)
    yield from ("", f"### `{name}`", "")
    if isinstance(node, ast.FunctionDef):
        yield from _call(node)
        return
    if isinstance(node, ast.ClassDef):
        yield from _class(node)
        return
    assert node.value is not None
    yield from ("```py", segment(path, node), "```")
    text = prose(docstring(path, name))
    if text:
        yield from ("", text)


def _class(node: ast.ClassDef) -> Iterator[str]:
    bases = [ast.unparse(base) for base in node.bases]
    refined = [base for base in bases if base not in ("Protocol", "Exception")]
    if refined:
        yield from ("Refines " + " and ".join(f"`{base}`" for base in refined) + ".", "")
    yield prose(ast.get_docstring(node) or "")
    rows = [
        (
            f"`{field.name}`",
            f"`{code(field.annotation)}`",
            "" if field.default is None else f"`{code(field.default)}`",
            cell(field.doc),
        )
        for field in fields(node)
        if not field.annotation.startswith("ClassVar")
    ]
    if rows:
        yield from ("", *table(("field", "type", "default", "meaning"), rows))
    for function in methods(node):
        if node.name in VERBS_OF_THE_LOOP and function.name != "__init__":
            continue
        if is_property(function):
            text = prose(ast.get_docstring(function) or "").replace("\n", " ")
            returns = "" if function.returns is None else ast.unparse(function.returns)
            yield from ("", f"* `.{function.name}`: `{returns}`. {text}".rstrip())
        else:
            yield from ("", *_call(function, owner=node.name))


def _call(function: ast.FunctionDef, owner: str = "") -> Iterator[str]:
    name = owner if function.name == "__init__" else f".{function.name}" if owner else function.name
    # `py`, not `python`: a signature is not run by the test of the pages.
    yield from ("```py", signature(function, name), "```")
    text = prose(ast.get_docstring(function) or "")
    if text:
        yield from ("", text)
