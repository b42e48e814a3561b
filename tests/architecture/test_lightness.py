"""Help, lists and config checks answer at once: nothing heavy is imported on their way."""

from __future__ import annotations

import ast
import json
import subprocess
import sys

import pytest

HEAVY = {
    *("accelerate", "comet_ml", "datasets", "huggingface_hub", "mlflow", "numpy", "pandas"),
    *("peft", "pyarrow", "safetensors", "tensorboard", "tokenizers", "torch", "trackio"),
    *("transformers", "wandb"),
}

LIGHT = ("grpo_core.cli", "grpo_core.config", "grpo_core.plugins", "grpo_core.types")
"""Packages of which every module is light."""


def option_models(code) -> set[str]:
    """Modules named by ``register(..., config="module:Model")``."""
    return {
        keyword.value.value.partition(":")[0]
        for module in code.values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "register"
        for keyword in node.keywords
        if keyword.arg == "config" and isinstance(keyword.value, ast.Constant)
    }


def light_modules(code) -> set[str]:
    registrations = {name for name in code if name.split(".")[-1] == "plugin"}
    inside = {name for name in code for root in LIGHT if f"{name}.".startswith(f"{root}.")}
    return {"grpo_core", "grpo_core.protocols", *inside, *registrations, *option_models(code)}


def heavy_imports(code) -> list[str]:
    return [
        f"importing {root} imports {way}"
        for root in sorted(light_modules(code))
        for target, way in code.reached(root).items()
        if target in HEAVY
    ]


def test_nothing_heavy_is_on_the_way(project) -> None:
    assert heavy_imports(project) == []


def test_the_way_is_followed_to_its_end(project) -> None:
    roots = light_modules(project)
    assert roots >= {"grpo_core.cli.app", "grpo_losses.plugin", "grpo_losses.config"}
    assert roots <= set(project)
    assert "torch" in project.reached("grpo_core.run")


def test_python_agrees(project) -> None:
    code = (
        "import importlib, json, sys\n"
        "for name in json.loads(sys.argv[1]): importlib.import_module(name)\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    # A __main__ module is a program: importing it would start the command. What is in contrib
    # need not be installed; `make contrib` asks its own PluginSuite.
    names = sorted(
        name
        for name in light_modules(project)
        if not name.endswith("__main__") and not project[name].path.startswith("contrib")
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(names)],
        capture_output=True,
        text=True,
        check=True,
    )
    imported = set(json.loads(done.stdout))
    assert imported >= set(names)
    assert imported & HEAVY == set()


@pytest.mark.parametrize(
    "source",
    [
        "import torch",
        "try:\n    from torch import nn\nexcept ImportError:\n    nn = None",
        "class A:\n    import transformers.modeling_utils",
        "import grpo_core.heavy",
        "from grpo_core import heavy",
        "from grpo_core import Heavy",
        "from grpo_core.heavy import Heavy",
    ],
)
def test_a_heavy_import_is_seen(parse, source: str) -> None:
    code = {
        "grpo_core": "__getattr__ = lazy_exports(__name__, {'Heavy': 'grpo_core.heavy'})",
        "grpo_core.heavy": "from numpy import array",
        "grpo_losses.plugin": source,
    }
    assert any("grpo_losses.plugin" in line for line in heavy_imports(parse(code)))


def test_a_heavy_model_of_options_is_seen(parse) -> None:
    code = {
        "a.plugin": "register('x', 'a.b:C', config='a.options:Options')",
        "a.options": "import torch",
    }
    assert any("a.options" in line for line in heavy_imports(parse(code)))


@pytest.mark.parametrize(
    "source",
    ["if TYPE_CHECKING:\n    import torch", "def f():\n    import torch", "import grpo_core.cli"],
)
def test_a_late_import_is_let_through(parse, source: str) -> None:
    assert heavy_imports(parse({"grpo_losses.plugin": source})) == []
