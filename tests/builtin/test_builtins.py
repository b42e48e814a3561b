"""The core's own components come in by the same door as everybody else's."""

import subprocess
import sys
from pathlib import Path

import pytest

from grpo_core.builtin.config import DatasetConfig
from grpo_core.plugins import Registry, build, config_model
from grpo_core.plugins.registrar import Role
from grpo_core.protocols import BuildContext


@pytest.mark.parametrize(
    ("role", "name"),
    [
        ("environment", "single-turn"),
        ("observer", "console"),
        ("observer", "jsonl"),
        ("observer", "report"),
        ("observer", "tensorboard"),
        ("task", "dataset"),
    ],
)
def test_each_is_registered_and_can_be_built(role: Role, name: str, tmp_path: Path) -> None:
    registration = Registry.installed().get(role, name)
    (tmp_path / "a.jsonl").write_text('{"prompt": "a"}')
    model = config_model(registration)
    config = None
    if model is not None:
        config = model(path=str(tmp_path / "a.jsonl")) if model is DatasetConfig else model()
    context = BuildContext(role=role, name=name, seed=0, run_dir=tmp_path)
    assert build(registration, config, context) is not None


def test_none_of_them_imports_torch_or_what_it_may_not_need(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import grpo_core.builtin as b\n"
        "import importlib\n"
        "for f in sorted(Path(b.__path__[0]).glob('*.py')):\n"
        "    importlib.import_module(f'grpo_core.builtin.{f.stem}')\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pyarrow', 'datasets', 'tensorboard'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert out.stdout.strip() == "[]"


def test_registration_imports_no_component() -> None:
    code = (
        "import sys, grpo_core.builtin.plugin\n"
        "print([m for m in sys.modules if m.startswith('grpo_core.builtin.') or m == 'rich'])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "['grpo_core.builtin.plugin']"
