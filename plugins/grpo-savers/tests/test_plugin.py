"""What the distribution registers, and that registering imports nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import pytest

from grpo_core.plugins.build import build, config_model
from grpo_core.plugins.catalog import FIRST_PARTY
from grpo_core.plugins.registry import Registry
from grpo_core.protocols import BuildContext, Saver

OFFERS = [(role, name) for role, names in FIRST_PARTY["grpo-savers"].items() for name in names]


@pytest.mark.parametrize(("role", "name"), OFFERS)
def test_every_component_is_registered_and_builds(role: str, name: str) -> None:
    registration = Registry.installed().get(role, name)  # type: ignore[arg-type]
    model = config_model(registration)
    context = BuildContext(role=role, name=name, seed=0, run_dir=None)
    component = build(registration, model() if model else None, context)
    assert isinstance(component, Saver)
    assert registration.summary


def test_registration_and_config_import_no_torch() -> None:
    code = "import sys, grpo_savers.plugin, grpo_savers.config;sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_everything_public_can_be_imported_from_the_package() -> None:
    import grpo_savers

    for name in grpo_savers.__all__:
        assert getattr(grpo_savers, name).__name__ == name
