"""docs/reference/config.md: every key of a config, from the pydantic models."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from generators.source import cell, code, table
from grpo_core.config.schema import LIST_BLOCKS, SECTIONS, SINGLE_BLOCKS, RewardBlock, RunConfig
from grpo_core.settings import (
    DynamicSamplingSettings,
    LoraSettings,
    RewardExecution,
    Settings,
)

HEAD = ("key", "type", "default", "meaning")

INTRODUCTION = """\
# Config

A config is YAML: defaults < files in the order given < `--set a.b=c`. Mappings are merged key by
key; lists and everything else are replaced. A key that does not exist is an error that names the
nearest one. `grpo config show FILE` prints a config with every default filled in, with `--probe`
also what `auto` becomes on this machine and why, and `grpo config schema` the JSON Schema for your
editor, with the options of what is installed.

Where the type says *component*, there stands a name (`loss: dapo`) or a name with its options
(`loss: {name: dapo, clip_high: 0.3}`). Names and options of the first-party ones are in
[components](components.md). An import path (`my_package.rewards:brevity`) or a file
(`my_rewards.py:brevity`) is a name too; files, of data as of code, are looked for in the folder
where `grpo` is started. A component whose name changes in a later layer starts afresh: options that
were meant for another one are dropped.
"""


def lines() -> Iterator[str]:
    yield INTRODUCTION
    yield "## Top level"
    yield ""
    yield from table(HEAD, [_top_level(name) for name in RunConfig.model_fields])
    sections: dict[str, type[BaseModel]] = {**SECTIONS, "model.lora": LoraSettings}
    sections["train.dynamic_sampling"] = DynamicSamplingSettings
    for title, model in sections.items():
        yield from ("", f"## `{title}`", "", cell(model.__doc__ or ""), "")
        yield from table(HEAD, option_rows(model))
    own = [row for row in option_rows(RewardBlock) if row[0] != "`name`"]
    yield from ("", "## `rewards`", "", "Beside its name and options each reward may have:", "")
    yield from table(HEAD, own)
    yield from ("", "## `rewards[].execution`", "", cell(RewardExecution.__doc__ or ""), "")
    yield from table(HEAD, option_rows(RewardExecution))


def _top_level(name: str) -> tuple[str, str, str, str]:
    field = RunConfig.model_fields[name]
    meaning = cell(field.description or "")
    if name in SECTIONS:
        link = f"[{name}](#{name})"
        default = "required" if field.is_required() else "`null`" if field.default is None else ""
        return (f"`{name}`", link, default, meaning)
    if name in SINGLE_BLOCKS | LIST_BLOCKS:
        kind = "list of components" if name in LIST_BLOCKS else "component"
        return (f"`{name}`", kind, _default_blocks(field.default), meaning)
    return (f"`{name}`", f"`{type_text(field.annotation)}`", _default(field), meaning)


def _default_blocks(default: Any) -> str:
    if default is PydanticUndefined:
        return "required"
    if default is None:
        return "`null`"
    if isinstance(default, tuple):
        return f"`[{', '.join(block.name for block in default)}]`"
    return f"`{default.name}`"


def option_rows(model: type[BaseModel]) -> list[tuple[str, ...]]:
    """One row per option: key, type with its bounds, default, meaning."""
    return [
        (
            f"`{field.alias or name}`",
            _type(field.annotation, field.metadata),
            _default(field),
            cell(field.description or ""),
        )
        for name, field in model.model_fields.items()
    ]


def _type(annotation: Any, metadata: list[Any]) -> str:
    signs = (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
    bounds = [
        f"{sign} {getattr(item, key)}"
        for key, sign in signs
        for item in metadata
        if getattr(item, key, None) is not None
    ]
    return ", ".join([f"`{code(type_text(annotation))}`", *bounds])


def type_text(annotation: Any) -> str:
    """A type as one would write it: ``str | None``, ``auto | no | bf16``."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(type_text(argument) for argument in arguments)
    if origin is Literal:
        return " | ".join(str(argument) for argument in arguments)
    if origin is typing.Annotated:
        return type_text(arguments[0])
    if origin is tuple:
        # In YAML it is a list: of any length, or of as many entries as are named.
        one = arguments[1:] == (...,)
        return f"list[{', '.join(type_text(a) for a in (arguments[:1] if one else arguments))}]"
    if origin is dict:
        return "mapping"
    if annotation is type(None):
        return "null"
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return "mapping"
    return getattr(annotation, "__name__", str(annotation))


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, Settings):
        return ""
    if value is None or isinstance(value, bool):
        return f"`{ {None: 'null', True: 'true', False: 'false'}[value] }`".replace(" ", "")
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{code(str(value))}`"
