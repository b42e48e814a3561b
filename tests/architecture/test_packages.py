"""Plugins see public names of the core, never each other; the core sees no plugin."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

from grpo_core import __version__

REPOSITORY = Path(__file__).parents[2]

PUBLIC = {
    "curves",
    "endpoint",
    "errors",
    "hookspecs",
    "lazy",
    "numerics",
    "plugins",
    "plugins.registrar",
    "policy",
    "protocols",
    "secrets",
    "settings",
    "staging",
    "turns",
    "types",
}
"""Modules of the core that a plugin may import, besides ``grpo_core`` itself."""

STANDS_ON = {
    # One engine, reached in two ways: what it is asked and what it may answer is written once.
    "grpo_generator_vllm_colocate": {"grpo_generator_vllm_server"},
}
"""Which package of ours imports another, whose distribution it then requires."""


def package(module: str) -> str:
    return module.partition(".")[0]


def others_imported(code) -> list[str]:
    """Imports of one of our packages that is neither the core nor the importer's own."""
    ours = {package(name) for name in code}
    return [
        module.at(found.line, f"{package(name)} must not import {found.module}")
        for name, module in code.items()
        for found in module.imports
        if package(found.module)
        in ours - {package(name), "grpo_core"} - STANDS_ON.get(package(name), set())
        or found.module.startswith(".")
    ]


def others_named(code) -> list[str]:
    """Plugins' modules in the core's strings: a plugin must not be found but by entry point."""
    plugins = {package(name) for name in code} - {"grpo_core"}
    return [
        module.at(node.lineno, f"names {node.value}")
        for name, module in code.items()
        if package(name) == "grpo_core"
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if node.value.partition(":")[0].partition(".")[0] in plugins
    ]


def internals_imported(code) -> list[str]:
    wrong = []
    for name, module in code.items():
        if package(name) == "grpo_core":
            continue
        for found in module.imports:
            if package(found.module) != "grpo_core":
                continue
            inner = found.module.removeprefix("grpo_core").removeprefix(".")
            words = [*inner.split("."), found.name or ""]
            if (inner and inner not in PUBLIC) or any(word.startswith("_") for word in words):
                wrong.append(module.at(found.line, f"{found.module} {found.name} is internal"))
    return wrong


def test_no_package_imports_a_plugin_of_ours(project) -> None:
    assert others_imported(project) == []


def test_the_core_names_no_plugins_module(project) -> None:
    assert others_named(project) == []


def test_plugins_import_public_names_only(project) -> None:
    assert internals_imported(project) == []


def test_a_package_that_stands_on_another_requires_it(project) -> None:
    # As long as the rule above has an exception, it is a real one.
    for name, others in STANDS_ON.items():
        imported = {
            package(found.module)
            for module, code in project.items()
            if package(module) == name
            for found in code.imports
        }
        folder = REPOSITORY / "plugins" / name.replace("_", "-")
        required = tomllib.loads((folder / "pyproject.toml").read_text())["project"]["dependencies"]
        assert others <= imported
        assert {f"{o.replace('_', '-')}=={__version__}" for o in others} <= set(required)


def test_every_plugin_is_looked_at(project) -> None:
    assert {package(name) for name in project} >= {
        "grpo_core",
        "grpo_generator_hf",
        "grpo_generator_vllm_colocate",
        "grpo_generator_vllm_server",
        "grpo_losses",
        "grpo_observers",
        "grpo_references",
        "grpo_reward_model",
        "grpo_rewards",
        "grpo_savers",
        "grpo_tools",
    }


@pytest.mark.parametrize(
    ("rule", "module", "source"),
    [
        (others_imported, "grpo_core.run", "def f():\n    from grpo_losses import Dapo"),
        (others_imported, "grpo_savers.card", "import grpo_losses.losses"),
        (others_imported, "grpo_generator_vllm_colocate.ways", "import grpo_losses"),
        (others_imported, "grpo_savers.card", "if TYPE_CHECKING:\n    import grpo_losses"),
        (others_imported, "grpo_savers.card", "from . import weights"),
        (others_named, "grpo_core.run", "importlib.import_module('grpo_losses.losses')"),
        (others_named, "grpo_core.run", "LOSS = 'grpo_losses.losses:Dapo'"),
        (internals_imported, "grpo_savers.card", "from grpo_core.trainer import Run"),
        (internals_imported, "grpo_savers.card", "from grpo_core.config.schema import RunConfig"),
        (internals_imported, "grpo_savers.card", "import grpo_core.cli"),
        (internals_imported, "grpo_savers.card", "from grpo_core.types import _secret"),
        (internals_imported, "grpo_savers.card", "from grpo_core.types.tokens import ActionTokens"),
    ],
)
def test_each_rule_can_fail(parse, rule, module: str, source: str) -> None:
    assert rule(parse({"grpo_losses.losses": "", module: source}))


@pytest.mark.parametrize("rule", [others_imported, others_named, internals_imported])
def test_each_rule_lets_a_good_plugin_through(parse, rule) -> None:
    good = "from grpo_core import hookimpl\nfrom grpo_core.types import Rollout\nimport torch"
    assert rule(parse({"grpo_losses.losses": good, "grpo_core": "NAME = 'grpo-losses'"})) == []
