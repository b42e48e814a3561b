"""Python functions as tools: their schema, and their arguments checked before they are called."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model
from transformers.utils.chat_template_utils import get_json_schema

from grpo_core.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Tool:
    """What the chat template presents, and what a call must look like.

    Example: ``make_tool(add)`` of ``def add(a: int, b: int) -> int`` with a docstring.
    """

    name: str
    schema: Mapping[str, Any]
    """The JSON schema of the function, as chat templates take it."""
    arguments: type[BaseModel]
    """Checks and converts arguments; fields are aliased by their names."""

    def checked(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments for the function; ``"3"`` becomes 3 where the hint is ``int``.

        Raises:
            pydantic.ValidationError: one is missing, unknown or of another type.
        """
        model = self.arguments.model_validate(dict(arguments))
        return {
            str(field.alias): getattr(model, name)
            for name, field in type(model).model_fields.items()
        }


def make_tool(function: Callable[..., Any]) -> Tool:
    """A function or method, plain or async, with type hints and a Google-style docstring.

    Raises:
        ConfigError: hints or docstring do not describe every parameter; says what is missing.
    """
    name = getattr(function, "__name__", None)
    if name is None:
        raise ConfigError(
            f"a tool must be a function or method, not {type(function).__name__}: the policy "
            "calls it by its name"
        )
    try:
        schema = get_json_schema(function)
        arguments = _arguments(name, function)
    except Exception as error:
        raise ConfigError(
            f"tool {name!r} cannot be described to the policy: {type(error).__name__}: {error}. "
            "It needs a docstring in Google's style with a description and an Args section, and a "
            "type hint and a line in Args for every parameter"
        ) from error
    return Tool(name=name, schema=schema, arguments=arguments)


def _arguments(name: str, function: Callable[..., Any]) -> type[BaseModel]:
    hints = get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {}
    # Numbered and aliased: a parameter called `copy` or `_x` would not do as a field's name.
    for number, parameter in enumerate(inspect.signature(function).parameters.values()):
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[f"argument_{number}"] = (
            hints[parameter.name],
            Field(default, alias=parameter.name),
        )
    config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    made: type[BaseModel] = create_model(name, __config__=config, **fields)
    return made


def as_text(result: object) -> str:
    """What a tool returned, for the model: text as it is, everything else as JSON."""
    if isinstance(result, str):
        return result
    try:
        return json.dumps(result, ensure_ascii=False, default=str)
    except (TypeError, ValueError):
        return str(result)


def error_text(message: str) -> str:
    """A failure, for the model; TRL's form."""
    return json.dumps({"error": message}, ensure_ascii=False)
