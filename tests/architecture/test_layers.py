"""Imports point one way: down."""

from __future__ import annotations

from collections.abc import Iterable
from graphlib import TopologicalSorter

import pytest

RUNTIME = ("import", "call")
ALWAYS = ("import", "call", "typing")

GROUND = {"errors", "lazy", "settings", "types"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "lazy": set(),
    "secrets": set(),
    "settings": set(),
    "staging": set(),
    "types": set(),
    "protocols": GROUND,
    "hookspecs": GROUND,
    "hooks": GROUND | {"hookspecs"},
    "plugins": GROUND | {"hooks", "hookspecs", "protocols"},
    "config": GROUND | {"plugins", "protocols", "yaml12"},
    "aggregation": GROUND,
    "attribution": GROUND,
    "batching": GROUND | {"aggregation"},
    "metrics": GROUND,
    "estimators": set(),
    "endpoint": GROUND,
    "numerics": set(),
    "yaml12": set(),
    "rewards": GROUND | {"attribution", "protocols"},
    "scoring": GROUND | {"attribution", "metrics", "rewards"},
    "turns": GROUND | {"protocols"},
    "policy": GROUND | {"batching", "protocols"},
    # `builtin` registers through the same door as any plugin, so it sees what a plugin sees.
    "builtin": GROUND | {"hookspecs", "plugins.registrar", "protocols", "secrets"},
    # Charts of the built-in report, for plugins that show curves elsewhere.
    "curves": {"builtin.charts", "builtin.markup"},
    "trainer": GROUND
    | {"attribution", "batching", "builtin.single_turn", "estimators", "hooks", "metrics"}
    | {"numerics", "protocols", "rewards", "scoring", "staging", "yaml12"},
    "demo": GROUND | {"protocols"},
    "run": GROUND | {"config", "plugins", "policy", "protocols", "rewards", "trainer"},
    "testing": GROUND
    | {
        "batching",
        "config",
        "demo",
        "hooks",
        "hookspecs",
        "metrics",
        "plugins",
        "policy",
        "protocols",
        "rewards",
    }
    | {"run", "scoring", "trainer", "turns"},
    # Scores what a run would, so it sees what makes a run; only `sampling` reaches the trainer.
    "preview": GROUND | {"builtin.text", "protocols", "rewards", "scoring", "trainer"},
    "scaffold": GROUND | {"plugins.catalog", "plugins.registrar", "staging"},
    "cli": GROUND
    | {"builtin.evaluation_views", "builtin.text", "staging"}
    | {"config", "demo", "plugins", "preview", "protocols", "run", "scaffold", "trainer"},
}
"""What each part may import while it runs. Names in annotations are free, unless below."""

NEVER = {
    "trainer": {"cli", "config", "plugins", "run"},
    "policy": {"cli", "config", "plugins", "run", "trainer"},
    "types": {"cli", "config", "plugins", "policy", "run", "trainer"},
    "plugins": {"cli", "config", "policy", "run", "trainer"},
}
"""What each part does not even name in annotations, nor reach through others."""


def part(module: str) -> str | None:
    """``grpo_core.types.tokens`` is of ``types``; ``None`` for the package itself and others."""
    words = module.split(".")
    return words[1] if words[0] == "grpo_core" and len(words) > 1 else None


def allowed(target: str, patterns: Iterable[str]) -> bool:
    return any(f"{target}.".startswith(f"grpo_core.{pattern}.") for pattern in patterns)


def upward_imports(code) -> list[str]:
    wrong = []
    for name, module in code.items():
        own = part(name)
        if own is None:
            continue
        for found in module.imports:
            target = code.target(found)
            if found.when not in RUNTIME or part(target) in (None, own):
                continue
            if not allowed(target, MAY_IMPORT.get(own, ())):
                wrong.append(module.at(found.line, f"{own} must not import {target}"))
    return wrong


def forbidden_names(code) -> list[str]:
    wrong = []
    for name, module in code.items():
        banned = NEVER.get(part(name) or "", set())
        for found in module.imports:
            target = code.target(found)
            if part(target) in banned:
                wrong.append(module.at(found.line, f"must not know {target}"))
        for target, way in code.reached(name, whens=RUNTIME).items() if banned else ():
            if part(target) in banned:
                wrong.append(module.at(1, f"must not reach {target}: {way}"))
    return wrong


def pluggy_users(code) -> set[str]:
    return {
        name
        for name, module in code.items()
        for found in module.imports
        if found.module.split(".")[0] == "pluggy"
    }


def test_imports_point_down(project) -> None:
    assert upward_imports(project) == []


def test_what_may_be_imported_has_no_cycle() -> None:
    graph = {own: {p.partition(".")[0] for p in below} for own, below in MAY_IMPORT.items()}
    assert list(TopologicalSorter(graph).static_order())


def test_every_part_has_its_place(project) -> None:
    assert {part(name) for name in project} - {None} == set(MAY_IMPORT)


def test_the_engine_knows_nothing_of_configs_and_plugins(project) -> None:
    assert forbidden_names(project) == []


def test_pluggy_is_touched_in_two_files(project) -> None:
    assert pluggy_users(project) == {"grpo_core.hooks", "grpo_core.hookspecs"}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("grpo_core.types.tokens", "from grpo_core.errors import ConfigError"),
        ("grpo_core.plugins.registry", "import grpo_core.config"),
        ("grpo_core.trainer.run", "def f():\n    from grpo_core.config import load_config"),
        ("grpo_core.trainer.run", "from grpo_core.builtin.console import Console"),
        ("grpo_core.trainer.run", "from grpo_core import load_run"),
        ("grpo_core.policy.model", "from grpo_core.trainer import Run"),
        ("grpo_core.config.schema", "from grpo_core.cli.app import grpo"),
        ("grpo_core.somewhere_new", "import grpo_core.errors"),
    ],
)
def test_an_upward_import_is_seen(parse, module: str, source: str) -> None:
    root = "__getattr__ = lazy_exports(__name__, {'load_run': 'grpo_core.run'})"
    assert upward_imports(parse({"grpo_core": root, module: source}))


def test_a_downward_import_and_an_annotation_are_let_through(parse) -> None:
    source = "from grpo_core.types import Rollout\nif TYPE_CHECKING:\n    import grpo_core.config"
    assert upward_imports(parse({"grpo_core.protocols": source})) == []


def test_forbidden_names_are_seen_in_annotations_and_behind_others(parse) -> None:
    typed = "if TYPE_CHECKING:\n    from grpo_core.config import ResolvedConfig"
    assert forbidden_names(parse({"grpo_core.trainer.run": typed}))
    behind = {
        "grpo_core.trainer.run": "import grpo_core.hooks",
        "grpo_core.hooks": "def f():\n    import grpo_core.plugins",
    }
    assert forbidden_names(parse(behind))


def test_pluggy_is_seen(parse) -> None:
    assert pluggy_users(parse({"grpo_core.run": "def f():\n    from pluggy import Result"}))
