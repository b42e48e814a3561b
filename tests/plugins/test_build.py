"""From a name and options to an object, and who is blamed when that fails."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import pytest

from grpo_core.errors import ConfigError, PluginError
from grpo_core.plugins import Registration, Registry, Role, Source, build, config_model, find
from grpo_core.protocols import BuildContext

PARTS = '''
"""Parts of a run."""
from pydantic import BaseModel

class Options(BaseModel):
    size: int = 3

class Factory:
    """A factory."""
    Config = Options
    def __init__(self, config=None, context=None):
        self.config, self.context = config, context

class Plain:
    def __init__(self, size=1):
        self.size = size

def factory(config, context):
    return (config, context)

def function(values, factor=1):
    return [factor * value for value in values]

class Failing:
    def __init__(self, config=None, context=None):
        raise KeyError("token")

number = 3

class Outer:
    class Inner:
        pass
'''
CONTEXT = BuildContext(role="loss", name="x", seed=0, run_dir=None)


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "build_parts", raising=False)
    (tmp_path / "build_parts.py").write_text(PARTS)
    return "build_parts"


@pytest.fixture
def installed_parts(parts: str) -> str:
    """The same, importable as an installed package is."""
    sys.path.insert(0, ".")
    return parts


def registration(target: object, role: Role = "loss", config: object = None) -> Registration:
    source = Source(plugin="p", distribution="grpo-p", version="1.0")
    return Registration(
        role=role,
        name="x",
        target=target,  # type: ignore[arg-type]
        config=config,  # type: ignore[arg-type]
        summary="",
        source=source,
    )


def test_factories_get_config_and_context(installed_parts: str) -> None:
    model = config_model(registration("json:loads", config=f"{installed_parts}:Options"))
    assert model is not None
    options = model(size=5)
    made = build(registration(f"{installed_parts}:Factory"), options, CONTEXT)
    assert (made.config.size, made.context) == (5, CONTEXT)
    assert build(registration(f"{installed_parts}:factory"), None, CONTEXT) == (None, CONTEXT)


def test_other_classes_get_options_by_name_and_functions_are_bound(installed_parts: str) -> None:
    assert build(registration(f"{installed_parts}:Plain"), {"size": 4}, CONTEXT).size == 4
    assert build(registration(f"{installed_parts}:Plain"), None, CONTEXT).size == 1
    bound = build(registration(f"{installed_parts}:function"), {"factor": 3}, CONTEXT)
    assert isinstance(bound, functools.partial)
    assert bound([1, 2]) == [3, 6]
    plain = build(registration(f"{installed_parts}:function"), None, CONTEXT)
    assert plain([1, 2]) == [1, 2]


@pytest.mark.parametrize(
    ("name", "attribute"),
    [("build_parts:Factory", "Factory"), ("build_parts.py:Outer.Inner", "Inner")],
)
def test_import_paths_need_no_registration(parts: str, name: str, attribute: str) -> None:
    found = find(Registry.installed(), "loss", name)
    assert found.target.__name__ == attribute  # type: ignore[union-attr]
    assert found.source.distribution is None
    assert (config_model(found) is not None) == (attribute == "Factory")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:f", "cannot import 'no_such_module': ModuleNotFoundError"),
        (
            "build_parts:Facory",
            "'build_parts' has no 'Facory'; it has: BaseModel, Options, Factory",
        ),
        ("build_parts:number", "'build_parts:number' is of type int, not a class or function"),
        ("gone.py:f", "there is no file 'gone.py' in"),
    ],
)
def test_import_paths_that_lead_nowhere(parts: str, name: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find(Registry.installed(), "loss", name)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            "no_such_module:f",
            "loss 'x' of grpo-p 1.0 cannot be imported from 'no_such_module:f': "
            "ModuleNotFoundError: No module named 'no_such_module'; is 'no_such_module' installed?",
        ),
        ("build_parts:Gone", "cannot be imported from 'build_parts:Gone': AttributeError"),
        (
            "build_parts:Failing",
            "loss 'x' of grpo-p 1.0 could not be built: build_parts:Failing(...) raised KeyError: "
            "'token'",
        ),
    ],
)
def test_a_failure_names_plugin_and_call(installed_parts: str, target: str, message: str) -> None:
    with pytest.raises(PluginError) as caught:
        build(registration(target), None, CONTEXT)
    assert message in str(caught.value)


def test_a_config_model_that_cannot_be_imported() -> None:
    with pytest.raises(PluginError, match=r"loss 'x' of grpo-p 1.0 cannot be imported from 'no_s"):
        config_model(registration("json:loads", config="no_such_module:Model"))
