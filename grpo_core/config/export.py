"""The JSON Schema of a whole config, for editors, with the components that are installed."""

from __future__ import annotations

from typing import Any

from grpo_core.config.components import checked_model
from grpo_core.config.schema import LIST_BLOCKS, SINGLE_BLOCKS, Block, RewardBlock, RunConfig
from grpo_core.errors import GRPOError
from grpo_core.plugins import Registration, Registry, Role

DIALECT = "https://json-schema.org/draft/2020-12/schema"

Schema = dict[str, Any]


def json_schema(registry: Registry | None = None) -> Schema:
    """A draft 2020-12 schema; each role block is one of what is installed, told apart by name.

    What needs several values at once (a multiple, a combination) is left to ``load_config``.
    """
    registry = registry or Registry.installed()
    schema = RunConfig.model_json_schema()
    definitions: Schema = schema.setdefault("$defs", {})
    for name in (Block.__name__, RewardBlock.__name__):
        definitions.pop(name, None)
    for key, role in (SINGLE_BLOCKS | LIST_BLOCKS).items():
        definitions[role] = _role(registry, role, definitions)
        reference = {"$ref": f"#/$defs/{role}"}
        old = schema["properties"][key]
        new = {k: v for k, v in old.items() if k in ("default", "description")}
        if key in LIST_BLOCKS:
            new |= {"type": "array", "items": reference}
        elif key == "advantage":
            new |= {"anyOf": [reference, {"type": "null"}]}
        else:
            new |= reference
        schema["properties"][key] = new
    return {"$schema": DIALECT, **schema, "title": "grpo run"}


def _role(registry: Registry, role: Role, definitions: Schema) -> Schema:
    """All blocks of one role; a bare name stands for one without options."""
    components = []
    bare = []
    for name in registry.names(role):
        registration = next(r for r in registry.offers(role) if r.name == name)
        block = _component(registration, definitions)
        components.append(block)
        if block["required"] == ["name"]:
            bare.append(name)
    path = {"type": "string", "pattern": ":", "description": "package.module:Name"}
    own = _own_properties(role)
    return {
        "oneOf": [
            *([{"enum": bare}] if bare else []),
            path,
            *components,
            {
                "type": "object",
                "title": "import path",
                "properties": {"name": path, **own},
                "required": ["name"],
            },
        ]
    }


def _component(registration: Registration, definitions: Schema) -> Schema:
    schema: Schema = {}
    open_ended = False
    try:
        model = checked_model(registration)
    except GRPOError:
        model, open_ended = None, True
    if model is not None:
        prefix = f"{registration.role}.{registration.name}."
        schema = model.model_json_schema(ref_template=f"#/$defs/{prefix}{{model}}")
        inner = schema.pop("$defs", {})
        definitions.update({prefix + name: value for name, value in inner.items()})
    name = {"const": registration.name, "description": registration.summary}
    return {
        **schema,
        "type": "object",
        "title": registration.name,
        "description": registration.summary,
        "properties": {
            "name": name,
            **_own_properties(registration.role),
            **schema.get("properties", {}),
        },
        "required": ["name", *schema.get("required", [])],
        "additionalProperties": open_ended or schema.get("additionalProperties", False),
    }


def _own_properties(role: Role) -> Schema:
    if role != "reward":
        return {}
    properties: Schema = RewardBlock.model_json_schema()["properties"]
    return {key: value for key, value in properties.items() if key != "name"}
