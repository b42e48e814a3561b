"""The packages agree with each other, with the catalog and with what was tested."""

from __future__ import annotations

import os
import re
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from grpo_core import __version__
from grpo_core.plugins import Registry
from grpo_core.plugins.catalog import FIRST_PARTY

REPOSITORY = Path(__file__).parents[2]
PLUGINS = sorted(path.parent for path in REPOSITORY.glob("plugins/*/pyproject.toml"))
each_plugin = pytest.mark.parametrize("folder", PLUGINS, ids=lambda folder: folder.name)


def project_of(folder: Path) -> dict:
    return tomllib.loads((folder / "pyproject.toml").read_text())["project"]


def requirements(folder: Path) -> list[Requirement]:
    """Of the package and of all its extras."""
    project = project_of(folder)
    extras = project.get("optional-dependencies", {}).values()
    lines = [*project.get("dependencies", ()), *(line for extra in extras for line in extra)]
    return [Requirement(line) for line in lines]


def constraints() -> dict[str, Version]:
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {
        canonicalize_name(pin.name): Version(str(pin.specifier).removeprefix("==")) for pin in pins
    }


def test_the_catalog_lists_every_plugin() -> None:
    assert {folder.name for folder in PLUGINS} == set(FIRST_PARTY)


@each_plugin
def test_versions_are_in_lockstep(folder: Path) -> None:
    project = project_of(folder)
    assert project["name"] == folder.name
    assert project["version"] == __version__
    assert f"grpo-core=={__version__}" in project["dependencies"]


def test_the_trainer_comes_with_every_plugin() -> None:
    extra = project_of(REPOSITORY)["optional-dependencies"]["hf"]
    assert {line for line in extra if line.startswith("grpo-")} == {
        f"{folder.name}=={__version__}" for folder in PLUGINS
    }


@each_plugin
def test_a_plugin_brings_no_dependency_that_the_trainer_lacks(folder: Path) -> None:
    core = {str(requirement) for requirement in requirements(REPOSITORY)}
    own = {str(requirement) for requirement in requirements(folder)}
    assert own - {f"grpo-core=={__version__}"} <= core


@each_plugin
def test_a_plugin_has_what_every_plugin_has(folder: Path) -> None:
    project = project_of(folder)
    package = folder / "src" / folder.name.replace("-", "_")
    assert project["entry-points"] == {"grpo_core": {folder.name: f"{package.name}.plugin"}}
    assert (package / "plugin.py").is_file()
    assert (package / "py.typed").is_file()
    assert (folder / project["readme"]).read_text().startswith(f"# {folder.name}\n")
    assert (folder / "LICENSE").read_bytes() == (REPOSITORY / "LICENSE").read_bytes()
    assert list(folder.glob("tests/test_*.py"))


def test_all_packages_ask_for_the_same_python() -> None:
    assert {project_of(folder)["requires-python"] for folder in (REPOSITORY, *PLUGINS)} == {
        ">=3.11"
    }


def test_the_type_checker_sees_every_plugin() -> None:
    tools = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]
    assert set(tools["mypy"]["mypy_path"]) == {
        "$MYPY_CONFIG_FILE_DIR",
        *(f"$MYPY_CONFIG_FILE_DIR/plugins/{folder.name}/src" for folder in PLUGINS),
    }


def test_the_catalog_is_what_the_packages_register(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith("GRPO_")]:
        monkeypatch.delenv(name)
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for registration in Registry.installed().discovery.registrations:
        if registration.source.distribution in FIRST_PARTY:
            found[registration.source.distribution][registration.role].add(registration.name)
    assert found == {
        plugin: {role: set(names) for role, names in roles.items()}
        for plugin, roles in FIRST_PARTY.items()
    }


def test_installed_versions_are_those_of_the_sources() -> None:
    sources = Registry.installed().discovery.plugins
    ours = {s.plugin: s.version for s in sources if s.plugin in {"grpo-core", *FIRST_PARTY}}
    assert ours == dict.fromkeys(("grpo-core", *FIRST_PARTY), __version__)


def test_the_tested_versions_are_in_the_accepted_ranges() -> None:
    pins = constraints()
    asked = {
        requirement
        for folder in (REPOSITORY, *PLUGINS)
        for requirement in requirements(folder)
        if not requirement.name.startswith("grpo-")
    }
    assert len(asked) > 10
    outside = [
        f"{requirement} but {pins.get(canonicalize_name(requirement.name))} was tested"
        for requirement in asked
        if pins.get(canonicalize_name(requirement.name), Version("0")) not in requirement.specifier
    ]
    assert outside == []


def test_constraints_name_public_versions_of_indexed_packages() -> None:
    text = (REPOSITORY / "constraints.txt").read_text()
    for line in text.splitlines():
        # No local build (+cpu), path or address: those exist on one machine only.
        public = r"[A-Za-z0-9._-]+==[0-9.]+((a|b|rc)[0-9]+)?"
        assert line.startswith("#") or re.fullmatch(public, line), line
