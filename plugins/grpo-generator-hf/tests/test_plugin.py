"""Found by its entry point, without importing anything heavy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import yaml

from grpo_core.plugins.build import build, config_model
from grpo_core.plugins.registry import Registry
from grpo_core.protocols import BuildContext
from grpo_generator_hf.config import HFConfig
from grpo_generator_hf.generator import HFGenerator


def test_registered_and_built() -> None:
    registration = Registry.installed().get("generator", "hf")
    assert registration.source.distribution == "grpo-generator-hf"
    model = config_model(registration)
    assert model is not None
    context = BuildContext(role="generator", name="hf", seed=0, run_dir=None)
    assert isinstance(build(registration, model(rows_per_batch=3), context), HFGenerator)


def test_registration_and_config_import_no_torch() -> None:
    code = (
        "import sys, grpo_generator_hf.plugin, grpo_generator_hf.config;"
        "print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_readme_shows_all_options_and_their_defaults() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    shown = yaml.safe_load(readme.split("```yaml\n")[1].split("```")[0])["generator"]
    assert shown.pop("name") == "hf"
    assert shown == HFConfig().model_dump()
