"""Python source as documentation: signatures, fields and docstrings, read without importing.

Reading the text keeps annotations as they were written, and one page the same under every Python.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]

Definition = ast.ClassDef | ast.FunctionDef | ast.Assign | ast.AnnAssign


@dataclass(frozen=True, kw_only=True, slots=True)
class Field:
    """An attribute of a class, with the text below it."""

    name: str
    annotation: str
    default: str | None
    doc: str


@cache
def module(path: str) -> ast.Module:
    """A module by its path in the repository: ``"grpo_core/hookspecs.py"``."""
    return ast.parse((ROOT / path).read_text("utf-8"))


def segment(path: str, node: ast.AST) -> str:
    """A node as it is written: lines are broken as everywhere else."""
    text = ast.get_source_segment((ROOT / path).read_text("utf-8"), node)
    assert text is not None
    return text


def definition(path: str, name: str) -> Definition:
    """A class, function or assignment of a module; ``LookupError`` when it has none such."""
    for node in module(path).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return node
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == name:
            return node
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name:
            return node
    raise LookupError(f"{path} defines no {name}")


def docstring(path: str, name: str) -> str:
    """The docstring of a class or function, or the text below an assignment."""
    node = definition(path, name)
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        body = module(path).body
        return _text_below(body, body.index(node))
    return ast.get_docstring(node) or ""


def fields(node: ast.ClassDef) -> Iterator[Field]:
    """The annotated attributes of a class, in order."""
    for position, item in enumerate(node.body):
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            yield Field(
                name=item.target.id,
                annotation=ast.unparse(item.annotation),
                default=_default(item.value),
                doc=_text_below(node.body, position),
            )


def _default(value: ast.expr | None) -> str | None:
    """The default as it is, not how dataclasses spell it."""
    if not (isinstance(value, ast.Call) and ast.unparse(value.func) == "field"):
        return None if value is None else ast.unparse(value)
    factories = {k.arg: ast.unparse(k.value) for k in value.keywords}
    return {"dict": "{}", "list": "[]"}.get(factories.get("default_factory", ""))


def methods(node: ast.ClassDef) -> Iterator[ast.FunctionDef]:
    """What may be called from outside: public methods, ``__init__`` and ``__call__``."""
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and (
            not item.name.startswith("_") or item.name in ("__init__", "__call__")
        ):
            yield item


def is_property(function: ast.FunctionDef) -> bool:
    return any(ast.unparse(decorator) == "property" for decorator in function.decorator_list)


def signature(function: ast.FunctionDef, name: str | None = None) -> str:
    """As it is called: without ``self``; one argument per line where it gets long."""
    arguments = list(_arguments(function.args))
    if arguments and arguments[0] in ("self", "cls"):
        del arguments[0]
    returns = "" if function.returns is None else f" -> {ast.unparse(function.returns)}"
    returns = "" if function.name == "__init__" else returns
    line = f"{name or function.name}({', '.join(arguments)}){returns}"
    if len(line) <= 88 or not arguments:
        return line
    inner = "".join(f"    {argument},\n" for argument in arguments)
    return f"{name or function.name}(\n{inner}){returns}"


def _arguments(arguments: ast.arguments) -> Iterator[str]:
    positional = [*arguments.posonlyargs, *arguments.args]
    missing: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    for argument, default in zip(positional, [*missing, *arguments.defaults], strict=True):
        yield _argument(argument, default)
    if arguments.vararg:
        yield "*" + _argument(arguments.vararg, None)
    elif arguments.kwonlyargs:
        yield "*"
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        yield _argument(argument, default)
    if arguments.kwarg:
        yield "**" + _argument(arguments.kwarg, None)


def _argument(argument: ast.arg, default: ast.expr | None) -> str:
    if argument.annotation is None:
        return argument.arg + ("" if default is None else f"={ast.unparse(default)}")
    text = f"{argument.arg}: {ast.unparse(argument.annotation)}"
    return text + ("" if default is None else f" = {ast.unparse(default)}")


def prose(text: str) -> str:
    """A docstring as Markdown: code in single backticks, ``Args:`` and the like as lists."""
    text = escaped(text.replace("``", "`").replace("::\n", ":\n"))
    out: list[str] = []
    section = ""
    for line in text.splitlines():
        if re.fullmatch(r"(Args|Returns|Raises):", line):
            section = line
            out += ["", line, ""]
        elif section and line.startswith("    "):
            out.append(_entry(line, listed=section != "Returns:"))
        else:
            section = section if not line.strip() else ""
            out.append(line)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(out)).strip()


def _entry(line: str, *, listed: bool) -> str:
    """A line below ``Args:``, ``Returns:`` or ``Raises:``."""
    if not listed:
        return line.strip()
    if line.startswith("     "):
        return f"  {line.strip()}"
    return "* " + re.sub(r"^(\w+(?:, \w+)*):", r"`\1`:", line.strip())


def escaped(text: str) -> str:
    """Angle brackets outside of code spans, which Markdown would take for HTML and drop."""
    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(p if p.startswith("`") else p.replace("<", "&lt;") for p in pieces)


def cell(text: str) -> str:
    """Prose for one cell of a table."""
    return escaped(code(text.replace("``", "`")))


def code(text: str) -> str:
    """Code for one cell of a table, to be put between backticks."""
    return " ".join(text.split()).replace("|", "\\|")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    lines = ["".join(f"| {text} " for text in head) + "|", f"|{'---|' * len(head)}"]
    return lines + ["".join(f"| {text} " if text else "| " for text in row) + "|" for row in rows]


def _text_below(body: list[ast.stmt], position: int) -> str:
    following = body[position + 1] if position + 1 < len(body) else None
    if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
        return re.sub(r"\n +", "\n", str(following.value.value))
    return ""
