"""One component in full, for ``grpo plugins show``, without importing its target."""

from __future__ import annotations

import inspect
import json
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from grpo_core.builtin.text import visible
from grpo_core.cli.columns import columns
from grpo_core.cli.source import docstring
from grpo_core.errors import GRPOError

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

    from grpo_core.plugins import Registration


def as_data(registration: Registration) -> dict[str, Any]:
    """Everything that is known, as plain data."""
    source = registration.source
    options, problem = _options(registration)
    return {
        "role": registration.role,
        "name": registration.name,
        "summary": registration.summary,
        "plugin": source.plugin,
        "distribution": source.distribution,
        "version": source.version,
        "target": registration.target_path,
        "docstring": docstring(registration),
        "description": described(registration),
        "options": options,
        "options_problem": problem,
    }


def as_text(registration: Registration) -> str:
    """The same for people."""
    data = as_data(registration)
    head = [("from", str(registration.source)), ("target", data["target"])]
    lines = [
        click.style(visible(f"{data['role']} {data['name']}"), bold=True),
        visible(data["summary"]),
        "",
        *columns(head),
    ]
    if data["docstring"] and data["docstring"] != data["summary"]:
        lines += ["", *textwrap.indent(visible(data["docstring"]), "  ").splitlines()]
    if data["description"]:
        lines += ["", *textwrap.indent(visible(data["description"]), "  ").splitlines()]
    lines += ["", "  Options:" if data["options"] else "  No options."]
    if data["options_problem"]:
        lines[-1] = visible(f"  Options unknown: {data['options_problem']}")
    return "\n".join([*lines, *(line for option in data["options"] for line in _option(option))])


def described(registration: Registration) -> str | None:
    """What the options' model says of the component by a ``describe()`` of its own."""
    from grpo_core.config.components import checked_model

    try:
        describe = getattr(checked_model(registration), "describe", None)
    except GRPOError:
        return None
    return str(describe()) if callable(describe) else None


def _option(option: dict[str, Any]) -> list[str]:
    default = "required" if option["required"] else f"default {json.dumps(option['default'])}"
    help_text = " ".join(visible(option["help"]).split())
    return [
        visible(f"    {option['name']}: {option['type']}, {default}"),
        *textwrap.wrap(help_text, 92, initial_indent=" " * 8, subsequent_indent=" " * 8),
    ]


def _options(registration: Registration) -> tuple[list[dict[str, Any]], str | None]:
    from grpo_core.config.components import checked_model

    try:
        model = checked_model(registration)
    except GRPOError as error:
        return [], str(error)
    return ([] if model is None else list(_fields(model))), None


def _fields(model: type[BaseModel], prefix: str = "") -> Iterator[dict[str, Any]]:
    from pydantic import BaseModel

    for name, field in model.model_fields.items():
        key = prefix + (field.alias or name)
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _fields(inner, prefix=f"{key}.")
            continue
        yield {
            "name": key,
            "type": inspect.formatannotation(inner),
            "required": field.is_required(),
            "default": _default(field),
            "help": field.description or "",
        }


def _default(field: FieldInfo) -> Any:
    from pydantic_core import to_jsonable_python

    if field.is_required():
        return None
    value = field.get_default(call_default_factory=True, validated_data={})
    return to_jsonable_python(value, fallback=repr)
