"""What is written into a run's folder is the whole run, and loads again."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

RICH = """
model: {path: m, lora: {target_modules: [q, v]}, init_kwargs: {a: [1, {b: null}]}}
task: {name: file, path: "1e-6"}
output: "no"
train: {steps: 12, prompts_per_step: 6, minibatches_per_step: 3, passes_per_step: 2}
optimizer: {learning_rate: 3e-7}
evaluation: {}
loss: {kl_coef: 0.1, schedule: {kind: cosine}, steps: [{start: 1}], words: [a]}
reference: frozen
rewards:
  - {name: length, weight: 0.5, label: brief, on_error: drop, target: 9}
  - exact-answer
savers: []
"""


@pytest.mark.parametrize("text", ["", RICH])
def test_round_trip(load, text: str) -> None:
    resolved = load(text)
    again = load(resolved.yaml(), minimal=False)
    assert again.config == resolved.config
    assert again.plain() == resolved.plain()
    assert again.manifest() == resolved.manifest()
    assert again.yaml() == resolved.yaml()


def test_plain_holds_every_default(load) -> None:
    plain = load().plain()
    assert plain["loss"] == {
        "name": "dapo",
        "clip_low": 0.2,
        "clip_high": 0.28,
        "kl_coef": 0.0,
        "schedule": None,
        "steps": [],
        "words": "all",
    }
    assert plain["advantage"] == {"name": "group"}
    assert plain["sampling"]["top_p"] == 1.0
    json.dumps(plain, allow_nan=False)


def test_manifest(load) -> None:
    manifest = load("rewards: [{name: length, target: 5}]").manifest()
    assert [entry["role"] for entry in manifest[:6]] == [
        "task",
        "generator",
        "environment",
        "reward",
        "advantage",
        "loss",
    ]
    assert manifest[3] == {
        "role": "reward",
        "name": "length",
        "distribution": "grpo-tests",
        "version": "0.1",
        "target": "tests.length:X",
        "config": {"target": 5},
    }


def test_components_by_role(load) -> None:
    resolved = load("rewards: [length]")
    assert resolved.component("task").name == "digits"
    assert [c.name for c in resolved.all("saver")] == ["safetensors", "rollouts"]
    with pytest.raises(LookupError, match="any number of components of role 'reward'"):
        resolved.component("reward")


def test_derived_counts(load) -> None:
    resolved = load(RICH)
    assert resolved.derived() == {
        "rollouts_per_step": 48,
        "rollouts_per_optimizer_step": 16,
        "optimizer_steps_per_step": 6,
        "optimizer_steps": 72,
        "prompts": 72,
        "rollouts": 576,
        "most_completion_tokens_per_step": 12288,
    }


def test_configs_are_loaded_without_torch() -> None:
    code = (
        "import sys; from grpo_core.config import load_config, json_schema; json_schema();"
        "load_config([{'model': {'path': 'm'}, 'task': 'arithmetic', 'train': {'steps': 1}}]);"
        "print(sorted({'torch', 'transformers', 'numpy', 'pyarrow', 'datasets'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
