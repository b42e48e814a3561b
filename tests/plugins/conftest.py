"""Distributions that really are installed: the fake plugin by pip, small ones on the spot."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

FAKE_PLUGIN = Path(__file__).parents[1] / "fake_plugin"


@pytest.fixture(scope="session")
def fake_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which ``tests/fake_plugin`` was installed."""
    site = tmp_path_factory.mktemp("site")
    # A copy: the build must not leave anything in the checkout.
    source = shutil.copytree(FAKE_PLUGIN, tmp_path_factory.mktemp("source") / "fake_plugin")
    # A virtual environment made by uv has no pip of its own.
    pip = [sys.executable, "-m", "pip"] if find_spec("pip") else ["uv", "pip"]
    done = subprocess.run(
        [*pip, "install", "-q", "--no-deps", "--no-build-isolation", "--target", site, source],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return site


def _forget(package: str) -> None:
    for name in [n for n in sys.modules if n == package or n.startswith(f"{package}.")]:
        del sys.modules[name]


@pytest.fixture
def fake_plugin(fake_site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The fake plugin, importable and discoverable in this process and its children."""
    monkeypatch.syspath_prepend(str(fake_site))
    monkeypatch.setenv("PYTHONPATH", str(fake_site))
    yield fake_site
    _forget("grpo_fake")


Distribution = Callable[..., str]


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Distribution]:
    """Install a distribution with one registration module: ``distribution(name, source)``.

    Returns the module's name. Children see it too.
    """
    site = tmp_path / "site-packages"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", str(site))
    modules = []

    def install(name: str, source: str, *, version: str = "1.0", entry: str | None = None) -> str:
        module = f"{name.replace('-', '_')}_plugin"
        modules.append(module)
        (site / f"{module}.py").write_text("from grpo_core import hookimpl\n" + source)
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[grpo_core]\n{entry or name} = {module}\n")
        importlib.invalidate_caches()
        return module

    yield install
    for module in modules:
        _forget(module)


@pytest.fixture
def offers() -> Callable[..., str]:
    """Source of a registration hook: ``offers("loss", "mine")``."""

    def source(role: str, name: str, target: str = "json:loads", extra: str = "") -> str:
        plural = role + ("es" if role.endswith("s") else "s")
        return (
            f"@hookimpl\ndef grpo_register_{plural}(register):\n"
            f"    register({name!r}, {target!r}{extra})\n"
        )

    return source


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GRPO_DISABLE_PLUGINS", "GRPO_LOAD_PLUGINS", "GRPO_STRICT_PLUGINS"):
        monkeypatch.delenv(name, raising=False)
