"""`grpo preview`, with a real model or with given completions."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from grpo_core.demo import checkpoint

Grpo = Callable[..., Result]

CONFIG = """\
task: arithmetic
train: {{steps: 1, prompts_per_step: 2, group_size: 4}}
sampling: {{max_tokens: 12}}
rewards: {rewards}
output: out
"""
MODEL = f"model.path={json.dumps(str(checkpoint('habit')))}"


@pytest.fixture
def prepared(tmp_path: Path) -> Callable[..., str]:
    def make(rewards: str = "[exact-answer]", code: str = "") -> str:
        (tmp_path / "run.yaml").write_text(CONFIG.format(rewards=rewards))
        (tmp_path / "mine.py").write_text(code)
        return "run.yaml"

    return make


def given(tmp_path: Path, *lines: dict[str, Any]) -> str:
    (tmp_path / "given.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return "given.jsonl"


def test_it_samples_what_the_first_step_would(
    grpo: Grpo, prepared: Callable[..., str], tmp_path: Path
) -> None:
    config = prepared()
    done = grpo("preview", config, "--set", MODEL, "--json", "a.json", "--examples", "8")
    assert done.exit_code == 0, done.output
    assert "rollouts        8 of 2 prompts" in done.output
    found = json.loads((tmp_path / "a.json").read_text())
    assert not (tmp_path / "out").exists(), "a preview leaves the run's folder alone"
    train = ("--set", "savers=[rollouts]", "--set", "train.max_sampler_mismatch=null")
    assert grpo("train", config, "--set", MODEL, *train).exit_code == 0
    metrics = json.loads((tmp_path / "out/metrics.jsonl").read_text().splitlines()[0])
    assert found["providers"][0]["values"]["mean"] == pytest.approx(
        metrics["reward/exact-answer/mean"]
    )
    assert found["lengths"]["mean"] == pytest.approx(metrics["length/mean"])
    assert found["truncated"] == pytest.approx(metrics["length/truncated_share"])
    assert found["groups_without_signal"] / 2 == pytest.approx(metrics["group/no_signal"])


def test_given_completions_need_no_model(
    grpo: Grpo, prepared: Callable[..., str], tmp_path: Path
) -> None:
    file = given(
        tmp_path,
        {"prompt": "2+2=?", "answer": "4", "completions": ["<answer>4</answer>", "no"]},
        {"prompt": "2+2=?", "answer": "4", "completion": "<answer>5</answer>"},
        {"prompt": "1+1=?", "answer": "2", "completion": "", "truncated": True},
        {"prompt": [{"role": "user", "content": "hi"}], "answer": None, "completion": "x"},
    )
    done = grpo(
        "preview", prepared(), "--set", "model.path=./nowhere", "--completions", file, "--json", "-"
    )
    assert done.exit_code == 0, done.output
    assert "no tokenizer at './nowhere', so lengths count bytes" in done.stderr
    found = json.loads(done.stdout)
    assert (found["prompts"], found["rollouts"], found["unit"]) == (3, 5, "bytes")
    (reward,) = found["providers"]
    assert (reward["values"]["count"], reward["values"]["mean"], reward["abstained"]) == (
        4,
        0.25,
        1,
    )
    assert found["truncated"] == 0.2


def test_completions_of_the_tasks_own_prompts(
    grpo: Grpo, prepared: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "data.jsonl").write_text('{"prompt": "2+2=?", "answer": "4"}\n')
    file = given(tmp_path, {"id": "train/0", "completion": "<answer>4</answer>"})
    task = ("--set", "task={name: dataset, path: data.jsonl}")
    done = grpo("preview", prepared(), "--set", MODEL, *task, "--completions", file, "--json", "-")
    found = json.loads(done.stdout)
    assert found["unit"] == "tokens"
    assert found["providers"][0]["values"]["mean"] == 1.0
    given(tmp_path, {"id": "train/9", "completion": ""})
    done = grpo("preview", prepared(), "--set", MODEL, *task, "--completions", file)
    assert done.exit_code == 4
    assert "given.jsonl, line 1: the task has no prompt 'train/9'" in done.stderr


def test_a_broken_reward_ends_it_with_its_own_exit_code(
    grpo: Grpo, prepared: Callable[..., str], tmp_path: Path
) -> None:
    code = "def slips(completions, **_):\n    return [1 / len(c) for c in completions]\n"
    config = prepared("[mine.py:slips, exact-answer]", code)
    file = given(
        tmp_path, *({"prompt": str(n), "answer": "", "completion": "ab"[n:]} for n in range(3))
    )
    done = grpo("preview", config, "--set", MODEL, "--completions", file, "--json", "out.json")
    assert done.exit_code == 3
    assert "Error: broken: slips." in done.stderr
    assert "ZeroDivisionError: division by zero" in done.stdout
    assert "exact-answer ok" in done.stdout
    assert json.loads((tmp_path / "out.json").read_text())["broken"] == ["slips"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1 is not valid JSON"),
        ("[]", "line 1: expected an object with `completion`"),
        ('{"prompt": "a"}', "line 1: expected an object with `completion`"),
        ('{"completion": "a"}', "line 1: expected `id` of one of the task's prompts"),
        ('{"prompt": "a", "completion": 5}', "line 1: a completion is 5; expected text"),
        ("", "has no completions"),
    ],
)
def test_a_file_that_is_not_of_this_form(
    grpo: Grpo, prepared: Callable[..., str], tmp_path: Path, line: str, message: str
) -> None:
    (tmp_path / "given.jsonl").write_text(line)
    done = grpo("preview", prepared(), "--set", MODEL, "--completions", "given.jsonl")
    assert done.exit_code == 4
    assert message in done.stderr


def test_completions_do_not_steer_the_terminal(
    grpo: Grpo, prepared: Callable[..., str], tmp_path: Path
) -> None:
    file = given(tmp_path, {"prompt": "\x1b[2J", "answer": "", "completion": "[red]\x1b]0;x\x07"})
    done = grpo("preview", prepared(), "--set", MODEL, "--completions", file)
    assert "\x1b" not in done.stdout
    assert "[red]" in done.stdout


def test_two_ways_to_say_what_is_scored(grpo: Grpo, prepared: Callable[..., str]) -> None:
    done = grpo("preview", prepared(), "--set", MODEL, "--completions", "x", "--prompts", "3")
    assert done.exit_code == 2
    assert "give one of them" in done.stderr


def test_help_imports_no_torch() -> None:
    code = "import sys, grpo_core.cli.preview as a, grpo_core.preview.scoring as b\n"
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
