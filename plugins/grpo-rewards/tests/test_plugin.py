"""What the distribution registers, and that registering imports nothing heavy."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from grpo_core.plugins.build import build, config_model
from grpo_core.plugins.catalog import FIRST_PARTY
from grpo_core.plugins.registry import Registry
from grpo_core.protocols import BuildContext, RewardProvider

OFFERS = [(role, name) for role, names in FIRST_PARTY["grpo-rewards"].items() for name in names]


@pytest.mark.parametrize(("role", "name"), OFFERS)
def test_every_component_is_registered_and_builds(role: str, name: str) -> None:
    registration = Registry.installed().get(role, name)  # type: ignore[arg-type]
    model = config_model(registration)
    context = BuildContext(role=role, name=name, seed=0, run_dir=None)
    component = build(registration, model() if model else None, context)
    assert isinstance(component, RewardProvider)
    assert component.name == name
    assert registration.summary


def test_rewards_import_no_torch() -> None:
    modules = "grpo_rewards.plugin, grpo_rewards.exact_answer, grpo_rewards.think_format"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_readme_runs() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


def test_everything_public_can_be_imported_from_the_package() -> None:
    import grpo_rewards

    for name in grpo_rewards.__all__:
        assert getattr(grpo_rewards, name).__name__ == name
