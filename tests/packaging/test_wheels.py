"""What users get from an index: every wheel is built, installed elsewhere, and found there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from grpo_core import __version__
from grpo_core.plugins.catalog import FIRST_PARTY

pytestmark = pytest.mark.wheels

REPOSITORY = Path(__file__).parents[2]
SOURCES = {"grpo-core": REPOSITORY / "grpo_core"} | {
    name: REPOSITORY / "plugins" / name / "src" / name.replace("-", "_") for name in FIRST_PARTY
}
each_package = pytest.mark.parametrize("name", SOURCES)

RUN = """\
model: {path: some/model}
task: arithmetic
train: {steps: 10}
rewards: [my_rewards:length]
generator: scripted
loss: dapo
"""


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    # Nothing that could lead back into the checkout or choose plugins.
    hidden = ("PYTHON", "GRPO_", "VIRTUAL_ENV")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(hidden)}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def run_well(*command: str | Path, cwd: Path) -> str:
    done = run(*command, cwd=cwd)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel of each distribution."""
    folder = tmp_path_factory.mktemp("wheels")
    projects = [REPOSITORY, *(REPOSITORY / "plugins" / name for name in FIRST_PARTY)]
    run_well(
        *(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, *projects),
        cwd=folder,
    )
    built = {path.name.split("-")[0].replace("_", "-"): path for path in folder.glob("*.whl")}
    assert set(built) == set(SOURCES)
    return built


def environment_with(folder: Path, wheels: Sequence[Path]) -> Path:
    """A fresh virtual environment; returns its folder of commands."""
    venv.create(folder, with_pip=True)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "-q"]
    core, *plugins = wheels
    run_well(*pip, core, cwd=folder)
    if plugins:
        # What is missing is torch and its like: large, and not needed to register.
        run_well(*pip, "--no-deps", "--no-index", *plugins, cwd=folder)
    return folder / "bin"


@pytest.fixture(scope="module")
def core_alone(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment_with(tmp_path_factory.mktemp("core"), [wheels["grpo-core"]])


@pytest.fixture(scope="module")
def everything(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment_with(tmp_path_factory.mktemp("all"), [wheels[name] for name in SOURCES])


@each_package
def test_a_wheel_holds_its_package_and_nothing_else(wheels: dict[str, Path], name: str) -> None:
    package = SOURCES[name]
    files = (path for path in package.rglob("*") if path.is_file())
    expected = {str(path.relative_to(package.parent)) for path in files if path.suffix != ".pyc"}
    with zipfile.ZipFile(wheels[name]) as wheel:
        inside = {n for n in wheel.namelist() if ".dist-info/" not in n and not n.endswith("/")}
    assert inside == expected
    assert f"{package.name}/py.typed" in inside
    assert not [n for n in inside if "test_" in n or "conftest" in n]


def test_the_core_brings_its_data(wheels: dict[str, Path]) -> None:
    with zipfile.ZipFile(wheels["grpo-core"]) as wheel:
        size = {info.filename: info.file_size for info in wheel.infolist()}
    for model in ("habit", "plain"):
        assert size[f"grpo_core/demo/checkpoints/{model}/model.safetensors"] > 1_000_000
        assert size[f"grpo_core/demo/checkpoints/{model}/tokenizer.json"] > 1_000
    assert size["grpo_core/demo/demo.yaml"]
    assert size["grpo_core/builtin/report.css"]
    assert size["grpo_core/cli/starters/arithmetic.yaml"]
    # Two models of 1.7 MB each, hardly compressible; more would be something put in by mistake.
    assert wheels["grpo-core"].stat().st_size < 6_000_000


@each_package
def test_a_wheel_says_what_it_is(wheels: dict[str, Path], name: str) -> None:
    with zipfile.ZipFile(wheels[name]) as wheel:
        info = f"{name.replace('-', '_')}-{__version__}.dist-info"
        metadata = wheel.read(f"{info}/METADATA").decode()
        license_text = wheel.read(f"{info}/licenses/LICENSE")
        entry_points = wheel.read(f"{info}/entry_points.txt").decode()
    assert f"\nName: {name}\nVersion: {__version__}\n" in metadata
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    assert f"\n\n# {name.replace('grpo-core', 'grpo_core')}\n" in metadata
    assert license_text == (REPOSITORY / "LICENSE").read_bytes()
    assert f"[grpo_core]\n{name} = " in entry_points


def test_everything_is_found_without_torch(everything: Path, tmp_path: Path) -> None:
    assert run_well(everything / "grpo", "--version", cwd=tmp_path) == f"grpo-core {__version__}\n"
    listed = json.loads(run_well(everything / "grpo", "plugins", "list", "--json", cwd=tmp_path))
    assert listed["broken"] == []
    assert listed["disabled"] == []
    assert {c["version"] for c in listed["components"]} == {__version__}
    found = {(c["distribution"], c["role"], c["name"]) for c in listed["components"]}
    expected = {
        (distribution, role, name)
        for distribution, roles in FIRST_PARTY.items()
        for role, names in roles.items()
        for name in names
    }
    assert {item for item in found if item[0] != "grpo-core"} == expected
    assert ("grpo-core", "task", "arithmetic") in found
    absent = run(everything / "python", "-c", "import torch", cwd=tmp_path)
    assert "No module named 'torch'" in absent.stderr


def test_code_runs_from_the_environment_and_not_from_the_checkout(
    everything: Path, tmp_path: Path
) -> None:
    modules = [package.name for package in SOURCES.values()]
    code = f"import importlib\nfor n in {modules}: print(importlib.import_module(n).__file__)"
    files = run_well(everything / "python", "-c", code, cwd=tmp_path).splitlines()
    assert len(files) == len(SOURCES)
    assert all(Path(file).is_relative_to(everything.parent) for file in files), files


def test_the_core_alone_lists_its_own(core_alone: Path, tmp_path: Path) -> None:
    text = run_well(core_alone / "grpo", "plugins", "list", cwd=tmp_path)
    assert "arithmetic" in text
    assert "none installed" in text
    listed = json.loads(run_well(core_alone / "grpo", "plugins", "list", "--json", cwd=tmp_path))
    assert {c["distribution"] for c in listed["components"]} == {"grpo-core"}
    assert listed["broken"] == []


def test_the_core_alone_says_what_to_install(core_alone: Path, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(RUN)
    done = run(core_alone / "grpo", "config", "check", "run.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "there is no loss 'dapo'" in done.stderr
    assert "pip install grpo-losses" in done.stderr
    assert "Traceback" not in done.stderr
