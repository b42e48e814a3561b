"""``grpo train`` as a process: a real run, a real Ctrl-C, and exit codes that mean something."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

CONFIG = """\
model: {{path: {model}}}
task: arithmetic
train: {{steps: {steps}, prompts_per_step: 2, group_size: 2}}
sampling: {{max_tokens: 8}}
rewards: [{reward}]
output: run
"""

REWARDS = """\
import logging

def fine(completions, **_):
    logging.getLogger("grpo_rewards_of_mine").info("a plugin has chosen")
    logging.getLogger("httpx2").info("a request of somebody's")
    return [float(len(str(c))) for c in completions]

def broken(completions, **_):
    raise ConnectionError("no judge at home")
"""

Shell = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def write(tmp_path: Path, tiny_model: Path) -> Callable[..., None]:
    def write(*, steps: int = 2, reward: str = "rewards.py:fine") -> None:
        (tmp_path / "rewards.py").write_text(REWARDS)
        text = CONFIG.format(model=tiny_model, steps=steps, reward=reward)
        (tmp_path / "run.yaml").write_text(text)

    return write


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "grpo_core.cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for(path: Path, lines: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and path.read_text().count("\n") >= lines:
            return
        time.sleep(0.05)
    process.kill()
    pytest.fail(f"{path} never had {lines} lines: {process.communicate()[1][-2000:]}")


def test_a_run_leaves_a_model_that_plain_transformers_loads(
    write: Callable[..., None], shell: Shell, tmp_path: Path
) -> None:
    write()
    done = shell("train", "run.yaml", "--output", "here")
    assert done.returncode == 0, done.stderr
    assert "\na plugin has chosen\n" in f"\n{done.stderr}"
    assert "a request" not in done.stderr
    folder = tmp_path / "here"
    assert {p.name for p in folder.iterdir()} >= {
        "config.yaml",
        "components.json",
        "metrics.jsonl",
        "rollouts",
        "report.html",
        "final",
    }
    manifest = json.loads((folder / "components.json").read_text())
    assert ("reward", "rewards.py:fine") in {(e["role"], e["name"]) for e in manifest}
    script = (
        "import sys; from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"t = AutoTokenizer.from_pretrained({str(folder / 'final')!r})\n"
        f"m = AutoModelForCausalLM.from_pretrained({str(folder / 'final')!r})\n"
        "ids = t.apply_chat_template([{'role': 'user', 'content': '1 +1 mod 10=?'}],\n"
        "    add_generation_prompt=True, return_tensors='pt', return_dict=True)\n"
        "out = m.generate(**ids, max_new_tokens=4)\n"
        "assert out.shape[1] > ids['input_ids'].shape[1]\n"
        "assert not any(name.startswith('grpo') for name in sys.modules)\n"
    )
    checked = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr


def test_the_resolved_config_repeats_the_run(
    write: Callable[..., None], shell: Shell, tmp_path: Path
) -> None:
    write()
    assert shell("train", "run.yaml").returncode == 0
    again = shell("train", "run/config.yaml", "--output", "again")
    assert again.returncode == 0, again.stderr

    def steps(folder: str) -> list[dict[str, float]]:
        lines = (tmp_path / folder / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        return [{k: v for k, v in row.items() if "time" not in k} for row in rows]

    assert steps("run") == steps("again")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupts_end_the_run_with_what_was_done(
    write: Callable[..., None], tmp_path: Path, number: signal.Signals
) -> None:
    write(steps=100_000)
    process = start("train", "run.yaml")
    wait_for(tmp_path / "run" / "metrics.jsonl", 2, process)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 130, stderr
    assert (tmp_path / "run" / "final" / "model.safetensors").exists()
    assert "Traceback" not in stderr


def test_a_failing_reward_exits_with_its_name_and_its_own_lines(
    write: Callable[..., None], shell: Shell
) -> None:
    write(reward="rewards.py:broken")
    done = shell("train", "run.yaml")
    assert done.returncode == 3
    assert "reward 'broken'" in done.stderr
    assert "ConnectionError: no judge at home" in done.stderr
    assert 'raise ConnectionError("no judge at home")' in done.stderr
    assert "grpo_core" not in done.stderr
    traced = shell("train", "run.yaml", "--output", "other", "--debug")
    assert "grpo_core/scoring" in traced.stderr


def test_a_dataset_without_prompts_is_refused_before_the_model_is_loaded(
    shell: Shell, tmp_path: Path
) -> None:
    (tmp_path / "data.jsonl").write_text('{"question": "1+1", "answer": "2"}\n')
    (tmp_path / "run.yaml").write_text(
        "model: {path: /there/is/no/such/model}\n"
        "task: {name: dataset, path: data.jsonl}\n"
        "train: {steps: 1}\nrewards: [exact-answer]\n"
    )
    done = shell("train", "run.yaml")
    assert done.returncode == 4
    assert "question" in done.stderr
    assert "prompt_column" in done.stderr


def test_a_model_that_does_not_exist(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        "model: {path: ./nowhere}\ntask: arithmetic\ntrain: {steps: 1}\nrewards: [exact-answer]\n"
    )
    done = shell("train", "run.yaml", HF_HUB_OFFLINE="1")
    assert done.returncode == 2
    assert "model.path './nowhere' cannot be loaded: there is no such folder" in done.stderr
