"""New packages are what they promise: well-formed, installed by pip, tested, found."""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
import tomllib
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

from grpo_core.errors import ConfigError
from grpo_core.plugins.registrar import ROLES, Role
from grpo_core.scaffold.names import names_of
from grpo_core.scaffold.render import SUMMARIES, files_of, write

LONGEST = "a-name-of-thirty-characters-ab"
REPOSITORY = Path(__file__).parents[2]


def run(*command: str | Path, cwd: Path) -> str:
    hidden = ("PYTHON", "GRPO_", "VIRTUAL_ENV", "PIP_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(hidden)}
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def make(kind: Role, folder: Path, name: str = "near-miss") -> Path:
    return write(names_of(name, kind), kind, folder)


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A new environment that sees the core and what it needs, and whose packages nobody else
    sees. Returns its interpreter."""
    folder = tmp_path / "venv"
    venv.create(folder, with_pip=False)
    (packages,) = folder.glob("lib/python*/site-packages")
    paths = [str(REPOSITORY), *map(str, REPOSITORY.glob("plugins/*/src"))]
    outer = [f"import site; site.addsitedir({path!r})" for path in site.getsitepackages()]
    (packages / "outer.pth").write_text("\n".join([*paths, *outer]) + "\n")
    return folder / "bin" / "python"


@pytest.fixture
def install(environment: Path, tmp_path: Path) -> Callable[[Path], None]:
    """pip, offline: the backend and all dependencies are there already."""

    def do(*folders: Path) -> None:
        pip = (sys.executable, "-m", "pip", "--python", environment, "install", "-q")
        run(*pip, "--no-deps", "--no-index", "--no-build-isolation", *folders, cwd=tmp_path)

    return do


def test_there_is_a_template_for_every_role() -> None:
    assert set(SUMMARIES) == set(ROLES)


@pytest.mark.parametrize("name", ["x", "near-miss", LONGEST])
def test_every_package_is_clean_whatever_its_name(tmp_path: Path, name: str) -> None:
    for kind in ROLES:
        folder = make(kind, tmp_path, name)
        run(sys.executable, "-m", "ruff", "check", "--quiet", ".", cwd=folder)
        run(sys.executable, "-m", "ruff", "format", "--check", "--quiet", ".", cwd=folder)
        for path, text in files_of(names_of(name, kind), kind).items():
            # The one dollar sign that is meant ends a regular expression.
            assert "$" not in text.replace('+$"', ""), f"{path}: a variable that is not filled in"
        project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        assert project["name"] == folder.name


def test_a_reward_is_installed_passes_its_tests_and_is_found(
    tmp_path: Path, environment: Path, install: Callable[..., None]
) -> None:
    folder = make("reward", tmp_path)
    install(folder)
    out = run(
        environment, "-m", "pytest", "-q", "-c", "pyproject.toml", "--rootdir", ".", cwd=folder
    )
    assert "8 passed" in out
    listed = json.loads(
        run(environment, "-m", "grpo_core.cli", "plugins", "list", "--json", cwd=folder)
    )
    assert listed["broken"] == []
    (mine,) = [c for c in listed["components"] if c["distribution"] == folder.name]
    assert (mine["role"], mine["name"], mine["version"]) == ("reward", "near-miss", "0.1.0")
    checked = run(environment, "-m", "grpo_core.cli", "config", "check", "example.yaml", cwd=folder)
    assert "reward near-miss" in checked


@pytest.mark.wheels
def test_every_kind_is_installed_passes_its_tests_and_is_typed(
    tmp_path: Path, environment: Path, install: Callable[..., None]
) -> None:
    folders = {kind: make(kind, tmp_path) for kind in ROLES}
    install(*folders.values())
    for folder in folders.values():
        test = ("-m", "pytest", "-q", "-c", "pyproject.toml", "--rootdir", ".")
        run(environment, *test, cwd=folder)
        run(environment, "-m", "grpo_core.cli", "config", "check", "example.yaml", cwd=folder)
    sources = [folder / "src" for folder in folders.values()]
    run(
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--python-executable",
        environment,
        *sources,
        cwd=tmp_path,
    )
    listed = json.loads(
        run(environment, "-m", "grpo_core.cli", "plugins", "list", "--json", cwd=tmp_path)
    )
    found = {(c["role"], c["distribution"]) for c in listed["components"]}
    assert {(kind, folder.name) for kind, folder in folders.items()} <= found


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    folder = make("loss", tmp_path)
    (folder / "README.md").write_text("mine")
    with pytest.raises(ConfigError, match="exists already"):
        make("loss", tmp_path)
    assert (folder / "README.md").read_text() == "mine"
    (tmp_path / "grpo-losses-linked").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="exists already"):
        make("loss", tmp_path, "linked")
    with pytest.raises(ConfigError, match="there is no folder"):
        make("loss", tmp_path / "missing")


@pytest.mark.parametrize(
    ("licence", "first"), [("Apache-2.0", "Apache License"), ("MIT", "MIT License")]
)
def test_the_license_that_was_chosen(tmp_path: Path, licence: str, first: str) -> None:
    names = names_of("near", "reward")
    folder = write(names, "reward", tmp_path, licence)  # type: ignore[arg-type]
    assert first in (folder / "LICENSE").read_text()
    assert f'license = "{licence}"' in (folder / "pyproject.toml").read_text()


def test_no_license(tmp_path: Path) -> None:
    folder = write(names_of("near", "reward"), "reward", tmp_path, "none")
    assert not (folder / "LICENSE").exists()
    assert "license" not in tomllib.loads((folder / "pyproject.toml").read_text())["project"]
