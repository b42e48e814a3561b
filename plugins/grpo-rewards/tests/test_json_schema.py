"""JSON that a schema accepts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from grpo_core.errors import ConfigError, DataError
from grpo_core.protocols import RewardProvider
from grpo_rewards import JsonSchema, JsonSchemaConfig

Score = Callable[..., list[Any]]
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0}},
    "required": ["n"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"n": 2}', 1.0),
        (' {"n": 2}\n', 1.0),
        ('{"n": -2}', 0.0),
        ('{"n": "2"}', 0.0),
        ('{"n": 2, "m": 1}', 0.0),
        ("{}", 0.0),
        ('{"n": 2} and more', 0.0),
        ("{'n': 2}", 0.0),
        ('{"n": NaN}', 0.0),
        ("", 0.0),
        ("[" * 100_000, 0.0),
        ('{"n": ' + "9" * 5000 + "}", 0.0),
    ],
)
def test_the_whole_completion(text: str, expected: float, score: Score) -> None:
    provider = JsonSchema(JsonSchemaConfig(schema_value=SCHEMA))
    assert isinstance(provider, RewardProvider)
    assert score(provider, {}, text) == [expected]


def test_a_fenced_block_and_what_stands_behind_the_reasoning(score: Score) -> None:
    fenced = JsonSchema(JsonSchemaConfig(schema_value=SCHEMA, where="fenced"))
    good, bad = '```json\n{"n": 1}\n```', '```json\n{"n": -1}\n```'
    assert score(
        fenced, {}, f"so:\n{good}\nok", f"{good}\n{bad}", f"{bad}\n{good}", '{"n": 1}'
    ) == [*(1.0, 0.0, 1.0, 0.0)]
    after = JsonSchema(JsonSchemaConfig(schema_value=SCHEMA, after="</think>"))
    assert score(after, {}, '<think>{</think>{"n": 1}', '{"n": 1}') == [1.0, 0.0]


def test_schemas_from_files_and_columns(tmp_path: Path, score: Score) -> None:
    (tmp_path / "s.json").write_text(json.dumps(SCHEMA))
    provider = JsonSchema(JsonSchemaConfig(schema_path=str(tmp_path / "s.json")))
    assert score(provider, {}, '{"n": 1}', "1") == [1.0, 0.0]
    column = JsonSchema(JsonSchemaConfig(schema_column="schema"))
    assert score(column, {"schema": {"type": "integer"}}, "1", '"1"') == [1.0, 0.0]
    assert score(column, {"schema": '{"type": "integer"}'}, "1", '"1"') == [1.0, 0.0]
    assert score(column, {"schema": None}, "1") == [None]
    for wrong in ('{"type"', {"type": "whole"}):
        with pytest.raises(DataError, match="prompt 'train/17'"):
            score(column, {"schema": wrong}, "1")


def test_schemas_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no valid JSON Schema"):
        JsonSchema(JsonSchemaConfig(schema_value={"type": "whole"}))
    with pytest.raises(ConfigError, match="absent"):
        JsonSchema(JsonSchemaConfig(schema_path=str(tmp_path / "absent")))
    with pytest.raises(ValidationError, match="exactly one"):
        JsonSchemaConfig()
    with pytest.raises(ValidationError, match="exactly one"):
        JsonSchemaConfig(schema_value={}, schema_column="s")


def test_references_are_followed_within_the_schema_only(score: Score) -> None:
    schema = {"$defs": {"n": {"type": "integer"}}, "$ref": "#/$defs/n"}
    assert score(JsonSchema(JsonSchemaConfig(schema_value=schema)), {}, "1", '"1"') == [1.0, 0.0]
    remote = JsonSchema(JsonSchemaConfig(schema_value={"$ref": "http://127.0.0.1:9/s.json"}))
    with pytest.raises(Exception, match=r"Unresolvable.*s\.json"):
        score(remote, {}, "1")
