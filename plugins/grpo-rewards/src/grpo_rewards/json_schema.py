"""The reward of valid JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from grpo_core.errors import ConfigError, DataError
from grpo_core.types import Abstained, RewardOutcome, Value
from grpo_rewards.config import JsonSchemaConfig
from grpo_rewards.per_rollout import PerRollout, column_of

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

    from grpo_core.protocols import BuildContext
    from grpo_core.types import Rollout

FENCED = re.compile(r"^```json[ \t]*\n(.*?)^```[ \t]*$", re.DOTALL | re.MULTILINE)


class JsonSchema(PerRollout):
    """1.0 if the completion is JSON that a JSON Schema accepts, else 0.0.

    The schema's own ``$schema`` chooses the draft, 2020-12 without one. JSON is strict: NaN,
    Infinity and trailing text are refused. References lead into the schema only: nothing is ever
    fetched. A ``None`` in ``schema_column`` abstains.

    A pattern in the schema is a regular expression on the model's text: see ``regex`` for what
    that can cost.

    Raises:
        ConfigError: jsonschema is not installed, or there is no valid schema.
        DataError: while scoring, where a prompt's schema is missing or invalid.
    """

    Config = JsonSchemaConfig
    name = "json-schema"

    def __init__(self, config: JsonSchemaConfig, context: BuildContext | None = None) -> None:
        self._config = config
        self._validator: Validator | None = None
        if config.schema_column is None:
            schema: object = config.schema_value
            if config.schema_path is not None:
                schema = _read(config.schema_path)
            self._validator = _validator(schema, ConfigError, f"reward {self.name!r}")

    def __reduce__(self) -> tuple[type[JsonSchema], tuple[JsonSchemaConfig]]:
        # jsonschema's validators cannot be pickled: a worker process makes its own.
        return type(self), (self._config,)

    def outcome(self, rollout: Rollout) -> RewardOutcome:
        validator = self._validator or self._validator_of(rollout)
        if validator is None:
            return Abstained(reason=f"column {self._config.schema_column!r} is null")
        return Value(value=float(self._valid(rollout.text, validator)))

    def _validator_of(self, rollout: Rollout) -> Validator | None:
        prompt, column = rollout.prompt, self._config.schema_column or ""
        schema = column_of(prompt, column, self.name)
        who = f"{self.name}: column {column!r} of prompt {prompt.id!r}"
        if isinstance(schema, str):
            try:
                schema = json.loads(schema)
            except ValueError as error:
                raise DataError(f"{who} is no JSON: {error}") from error
        return None if schema is None else _validator(schema, DataError, who)

    def _valid(self, text: str, validator: Validator) -> bool:
        if self._config.after is not None:
            _, found, text = text.rpartition(self._config.after)
            if not found:
                return False
        if self._config.where == "fenced":
            blocks = FENCED.findall(text)
            text = blocks[-1] if blocks else ""
        try:
            value = json.loads(text, parse_constant=_refuse)
            return bool(validator.is_valid(value))
        except (ValueError, RecursionError):
            # Not JSON, or nested so deeply (by the model) that no program reads it.
            return False


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _read(path: str) -> object:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"reward 'json-schema': schema_path {path!r}: {error}") from error


def _validator(schema: Any, refusal: type[ConfigError | DataError], who: str) -> Validator:
    try:
        from jsonschema.exceptions import SchemaError
        from jsonschema.validators import Draft202012Validator, validator_for
        from referencing import Registry
    except ImportError as error:
        raise ConfigError(
            f"reward 'json-schema' needs jsonschema ({error}): pip install 'grpo-rewards[json]'"
        ) from error
    kind = validator_for(schema, default=Draft202012Validator)
    try:
        kind.check_schema(schema)
    except SchemaError as error:
        raise refusal(f"{who} has no valid JSON Schema: {error.message}") from error
    # A registry of its own: without one, jsonschema fetches what a $ref names.
    registry: Any = Registry()
    return kind(schema, registry=registry)
