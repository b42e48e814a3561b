"""The JSON Schema says what `load_config` says, as far as a schema can."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import grpo_core.demo
from grpo_core.config import json_schema
from grpo_core.config.problems import Problems
from grpo_core.config.yaml_text import read_text


def test_each_component_is_a_branch_with_its_options(registry) -> None:
    schema = json_schema(registry)
    branches = schema["$defs"]["loss"]["oneOf"]
    dapo = next(b for b in branches if b.get("title") == "dapo")
    assert dapo["properties"]["name"]["const"] == "dapo"
    assert dapo["properties"]["clip_high"]["default"] == 0.28
    assert dapo["additionalProperties"] is False
    assert schema["properties"]["rewards"]["items"] == {"$ref": "#/$defs/reward"}
    reward = next(b for b in schema["$defs"]["reward"]["oneOf"] if b.get("title") == "length")
    assert {"name", "weight", "label", "on_error", "execution", "target"} == set(
        reward["properties"]
    )


def test_only_names_without_required_options_stand_alone(registry) -> None:
    assert json_schema(registry)["$defs"]["task"]["oneOf"][0] == {"enum": ["digits"]}


def test_every_reference_leads_somewhere(registry) -> None:
    schema = json_schema(registry)
    references = re.findall(r"'\$ref': '#/\$defs/([^']+)'", repr(schema))
    assert references
    assert set(references) <= set(schema["$defs"])


def test_a_component_whose_options_cannot_be_imported_takes_any(registry) -> None:
    branches = json_schema(registry)["$defs"]["loss"]["oneOf"]
    assert next(b for b in branches if b.get("title") == "nowhere")["additionalProperties"] is True


GOOD = [
    "loss: dapo",
    "loss: {name: dapo, clip_high: 0.4, schedule: {kind: cosine}}",
    "loss: {name: 'mine.py:Loss', anything: 1}",
    "loss: mine:Loss",
    "advantage: null",
    "evaluation: null",
    "rewards: [length, {name: length, label: l, target: 4, weight: 2}]",
    "model: {path: m, lora: {r: 4}}",
]
BAD = [
    "loss: dapoo",
    "loss: {name: dapo, clip_hi: 0.4}",
    "loss: {name: dapo, clip_high: x}",
    "loss: {name: dapo, schedule: {kind: x}}",
    "task: file",
    "rewards: length",
    "rewards: [{name: length, weight: x}]",
    "train: {steps: 0}",
    "zzz: 1",
]


def validator(schema: dict[str, Any]) -> Any:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("text", [*GOOD, *BAD])
def test_agrees_with_the_loader(load, registry, text: str) -> None:
    minimal = {"model": {"path": "m"}, "task": "digits", "train": {"steps": 3}}
    data = minimal | yaml.safe_load(text)
    errors = list(validator(json_schema(registry)).iter_errors(data))
    assert bool(errors) == (text in BAD), errors
    if text in GOOD and ":Loss" not in text:
        load(text)


def test_the_demo_is_valid_for_what_is_installed() -> None:
    file = Path(grpo_core.demo.__file__).with_name("demo.yaml")
    node = read_text(file.read_text(), "demo.yaml", Problems())
    assert node is not None
    data = node.plain() | {"model": {"path": "x"}}
    assert not list(validator(json_schema()).iter_errors(data))
