"""Registration imports nothing heavy, whatever is installed."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = [
    *("accelerate", "datasets", "huggingface_hub", "matplotlib", "numpy", "pandas", "peft"),
    *("pyarrow", "pydantic", "rich", "safetensors", "tensorboard", "tokenizers", "torch"),
    *("transformers", "yaml"),
]

SCAN = f"""
import sys
from grpo_core.plugins import ROLES, Registry
registry = Registry.installed()
assert all(registry.offers(role) for role in ROLES), registry.discovery.broken
print([name for name in {HEAVY} if name in sys.modules])
"""

CONFIGS = f"""
import sys
from grpo_core.plugins import Registry, config_model
for registration in Registry.installed().discovery.registrations:
    before = set(sys.modules)
    config_model(registration)
    new = set(sys.modules) - before
    heavy = [name for name in {[h for h in HEAVY if h not in ("pydantic", "yaml")]} if name in new]
    if heavy:
        print(registration.role, registration.name, heavy)
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_scanning_imports_nothing_heavy(fake_plugin) -> None:
    assert run(SCAN) == "[]"


def test_option_models_import_nothing_heavy(fake_plugin) -> None:
    assert run(CONFIGS) == ""


@pytest.mark.parametrize("module", ["grpo_core", "grpo_core.types", "grpo_core.protocols"])
def test_what_plugin_authors_import_is_light(module: str) -> None:
    assert run(f"import sys, {module}; print([n for n in {HEAVY} if n in sys.modules])") == "[]"
