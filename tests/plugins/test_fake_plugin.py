"""A stranger's distribution: pip-installed, found, named in a config, gone when uninstalled."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from grpo_core.config import load_config
from grpo_core.errors import ConfigError, UnknownComponentError
from grpo_core.plugins import ROLES, Registry, build
from grpo_core.protocols import BuildContext
from grpo_core.testing.plugin_suite import PROTOCOLS
from grpo_core.types import ScoreRequest, Value

CONFIG = {
    "model": {"path": "some/model"},
    "task": "fake-digits",
    "train": {"steps": 2},
    "generator": "fake-one-token",
    "environment": "fake-stamped",
    "rewards": [{"name": "fake-length", "target": 3}, "fake-even"],
    "loss": {"name": "fake-reinforce", "kl_coef": 0.1},
    "reference": "fake-self",
    "savers": ["fake-note"],
    "observers": ["fake-recorder"],
}


def grpo(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "grpo_core.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_role_in_one_config(fake_plugin: Path) -> None:
    resolved = load_config([CONFIG])
    manifest = resolved.manifest()
    assert {entry["role"] for entry in manifest} == set(ROLES)
    assert {(entry["distribution"], entry["version"]) for entry in manifest} == {
        ("grpo-fake", "1.2.3")
    }
    # The loss's own choice, since the config names none.
    assert resolved.component("advantage").name == "fake-sign"


def test_every_component_is_built_and_keeps_its_protocol(fake_plugin: Path) -> None:
    for component in load_config([CONFIG]).components:
        context = BuildContext(role=component.role, name=component.name, seed=0, run_dir=None)
        built = build(component.registration, component.options, context)
        if component.name != "fake-even":  # a plain function, which the trainer adapts
            assert isinstance(built, PROTOCOLS[component.role]), component.name


def test_options_arrive(fake_plugin: Path, make_rollout) -> None:
    resolved = load_config([CONFIG], ["rewards.0.slope=0.5"])
    reward = resolved.rewards[0]
    context = BuildContext(role="reward", name=reward.name, seed=0, run_dir=None)
    provider = build(reward.registration, reward.options, context)
    rollouts = (make_rollout((1,), (5, 6)), make_rollout((1,), (5, 6, 7)))
    outcomes = provider.score(ScoreRequest(step=0, rollouts_B=rollouts))
    assert list(outcomes) == [Value(value=0.5), Value(value=1.0)]


def test_its_options_are_checked(fake_plugin: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config([CONFIG | {"rewards": [{"name": "fake-length", "taget": 3}]}])
    message = str(caught.value)
    assert "rewards.0.taget: unknown key; did you mean 'target'?" in message
    assert "rewards.0.target: missing: Completion tokens, the end token included." in message


def test_without_it_its_names_mean_nothing() -> None:
    with pytest.raises(UnknownComponentError, match="there is no reward 'fake-length'"):
        Registry.installed().get("reward", "fake-length")


def test_the_command_lists_and_shows_it(fake_plugin: Path) -> None:
    data = json.loads(grpo("plugins", "list", "--json").stdout)
    ours = [c for c in data["components"] if c["distribution"] == "grpo-fake"]
    assert {c["role"] for c in ours} == set(ROLES)
    assert all(c["version"] == "1.2.3" and not c["collides"] for c in ours)

    shown = grpo("plugins", "show", "fake-length")
    assert shown.returncode == 0, shown.stderr
    for part in (
        "reward fake-length",
        "grpo-fake 1.2.3",
        "grpo_fake.rewards:Length",
        "1 at the wanted length, less by `slope` per token of difference.",
        "target: int, required",
        "slope: float, default 0.1",
        "Reward lost per token of difference.",
    ):
        assert part in shown.stdout


def test_the_command_checks_a_config_that_names_it(fake_plugin: Path, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(json.dumps(CONFIG))
    done = grpo("config", "check", str(tmp_path / "run.yaml"))
    assert (done.returncode, done.stderr) == (0, "")
    done = grpo("config", "check", str(tmp_path / "run.yaml"), "--disable-plugin", "grpo-fake")
    assert done.returncode == 2
    assert "there is no reward 'fake-length'" in done.stderr
