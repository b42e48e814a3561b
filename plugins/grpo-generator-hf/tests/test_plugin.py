"""What every plugin promises, and the options that the README shows."""

from pathlib import Path

import yaml

from grpo_core.testing import PluginSuite
from grpo_generator_hf import HFConfig


class TestPlugin(PluginSuite):
    distribution = "grpo-generator-hf"
    package = "grpo_generator_hf"


def test_the_readme_shows_all_options_and_their_defaults() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    shown = yaml.safe_load(readme.split("```yaml\n")[1].split("```")[0])["generator"]
    assert shown.pop("name") == "hf"
    assert shown == HFConfig().model_dump()
