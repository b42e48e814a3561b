"""What a component's source says of it, read instead of run: importing may cost a torch."""

from __future__ import annotations

import ast
import importlib.util
import inspect
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grpo_core.plugins import Registration

_DOCUMENTED = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def docstring(registration: Registration) -> str | None:
    """The docstring of the target; ``None`` where there is none, or no source to be read."""
    target = registration.target
    if not isinstance(target, str):
        return inspect.getdoc(target)
    module, _, attribute = target.partition(":")
    source = _source_file(module)
    try:
        body = ast.parse(source.read_bytes()).body if source is not None else []
    except (OSError, SyntaxError, ValueError):
        return None
    node = None
    for part in attribute.split("."):
        node = next((n for n in body if isinstance(n, _DOCUMENTED) and n.name == part), None)
        if node is None:
            return None
        body = node.body
    return ast.get_docstring(node) if node is not None else None


def _source_file(module: str) -> Path | None:
    """Where a module lies. ``importlib.util.find_spec`` would import the packages around it."""
    top, *parts = module.split(".")
    name = top
    spec = importlib.util.find_spec(top)
    for part in parts:
        name += f".{part}"
        spec = PathFinder.find_spec(name, spec.submodule_search_locations if spec else None)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return Path(spec.origin)
