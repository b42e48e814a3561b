"""docs/reference/hooks.md: every hook in the order of a run, with its signature and event."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from generators.source import (
    cell,
    code,
    definition,
    fields,
    methods,
    module,
    prose,
    signature,
    table,
)

SPECIFICATIONS = "grpo_core/hookspecs.py"
EVENTS = "grpo_core/types/events.py"


def lines() -> Iterator[str]:
    yield "# Hooks"
    yield ""
    yield prose(ast.get_docstring(module(SPECIFICATIONS)) or "")
    yield ""
    yield "Mark an implementation with `from grpo_core import hookimpl`. A marked function that is"
    yield "no hook, or takes an argument that the hook has not, is an error that names it."
    for title, name in (("Registration", "RegistrationHooks"), ("Lifecycle", "LifecycleHooks")):
        specification = definition(SPECIFICATIONS, name)
        assert isinstance(specification, ast.ClassDef)
        yield from ("", f"## {title}", "", prose(ast.get_docstring(specification) or ""))
        for function in methods(specification):
            yield from _hook(function)


def _hook(function: ast.FunctionDef) -> Iterator[str]:
    yield from ("", f"### `{signature(function).removesuffix(' -> None')}`", "")
    yield prose(ast.get_docstring(function) or "")
    event = function.args.args[1]
    if event.arg != "event" or event.annotation is None:
        return
    node = definition(EVENTS, ast.unparse(event.annotation))
    assert isinstance(node, ast.ClassDef)
    rows = [(f"`{f.name}`", f"`{code(f.annotation)}`", cell(f.doc)) for f in fields(node)]
    yield ""
    yield from table(("of the event", "type", "meaning"), rows)
