"""docs/reference/cli.md: every command, from the click objects themselves."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator

import click

from generators.source import cell, code, definition, docstring, prose, table
from grpo_core import errors
from grpo_core.cli.app import grpo

VARIABLES = (
    ("grpo_core/plugins/discovery.py", "DISABLE_VARIABLE"),
    ("grpo_core/plugins/discovery.py", "ONLY_VARIABLE"),
    ("grpo_core/cli/options.py", "STRICT_VARIABLE"),
)


def lines() -> Iterator[str]:
    yield "# The `grpo` command"
    yield ""
    yield from _command(grpo, "grpo")
    yield from _environment()
    yield from _exit_codes()


def _command(command: click.Command, path: str) -> Iterator[str]:
    if path != "grpo":
        yield from (f"## `{path}`", "")
    context = click.Context(command, info_name=path)
    pieces = " ".join([path, *command.collect_usage_pieces(context)])
    # Code in a fence of its own language would be run by the test of the pages.
    yield from (f"    {pieces}", "")
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        # click's mark for "leave the lines as they are".
        verbatim = paragraph.startswith("\b\n")
        yield from ("    " + paragraph[2:] if verbatim else prose(paragraph), "")
    rows = [_option(option) for option in command.params if isinstance(option, click.Option)]
    if rows:
        yield from table(("option", "meaning"), rows)
        yield ""
    if isinstance(command, click.Group):
        for name in sorted(command.commands):
            yield from _command(command.commands[name], f"{path} {name}")


def _option(option: click.Option) -> tuple[str, str]:
    names = ", ".join(option.opts)
    kind = option.metavar
    if kind is None and not option.is_flag:
        choices = getattr(option.type, "choices", None)
        kind = "[" + "|".join(choices) + "]" if choices else option.type.name.split()[0].upper()
    suffix = "" if kind is None or option.is_flag else f" {kind}"
    shown = f" Default: `{option.default}`." if option.show_default else ""
    repeated = " May be repeated." if option.multiple else ""
    return f"`{code(names + suffix)}`", cell(f"{option.help or ''}{shown}{repeated}")


def _environment() -> Iterator[str]:
    yield from ("## Environment variables", "")
    rows = []
    for path, constant in VARIABLES:
        node = definition(path, constant)
        assert isinstance(node, ast.Assign)
        value = ast.literal_eval(node.value)
        rows.append((f"`{value}`", cell(docstring(path, constant))))
    yield from table(("variable", "meaning"), rows)
    yield ""


def _exit_codes() -> Iterator[str]:
    yield from ("## Exit codes", "")
    codes: dict[int, list[str]] = {}
    for name, error in vars(errors).items():
        if isinstance(error, type) and issubclass(error, errors.GRPOError):
            codes.setdefault(error.exit_code, []).append(name)
    rows = [("0", "", "The command did what it was asked."), ("1", "", "An unexpected error.")]
    for number, names in sorted(codes.items()):
        meaning = docstring("grpo_core/errors.py", names[0])
        listed = ", ".join(f"`{name}`" for name in names)
        if number != 1:
            rows.append((str(number), listed, cell(meaning)))
    rows.append(("130", "", "Interrupted; what was done has been saved."))
    yield from table(("code", "error", "meaning"), rows)
