"""``grpo eval`` as a process: on a folder, on a run's model, and on what is neither."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from grpo_core.demo import checkpoint

SETS = ("--set", "sampling.max_tokens=40")


def test_a_model_with_a_task(shell, tmp_path: Path) -> None:
    shown = shell(
        *("eval", str(checkpoint("habit")), "--task", "arithmetic", "--reward", "exact-answer"),
        *("--samples", "4", "--temperature", "1.0", "--prompts", "16", "-o", "found.json", *SETS),
    )
    assert shown.returncode == 0, shown.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    numbers = {r["measure"]: r for r in found["results"]}
    assert list(numbers) == ["mean@4", "pass@1", "pass@2", "pass@4", "majority@4"]
    one = numbers["pass@1"]
    assert one["value"] == pytest.approx(numbers["mean@4"]["value"])
    assert one["low"] < one["value"] < one["high"]
    assert numbers["pass@1"]["value"] < numbers["pass@2"]["value"] < numbers["pass@4"]["value"]
    assert found["config"]["evaluation"]["sampling"]["sampled"]["samples"] == 4
    for words in ("pass@4", f"{one['value']:.3f}", "2 +1 -5 -4 +1 mod 10=?", "<answer>"):
        assert words in shown.stdout


def test_a_run_knows_its_task_and_its_greedy_answer(shell, tmp_path: Path) -> None:
    done = shell("demo", "--steps", "1", "-o", "run")
    assert done.returncode == 0, done.stderr
    shown = shell("eval", "run/final", "--temperature", "0", "--prompts", "256", "-o", "found.json")
    assert shown.returncode == 0, shown.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    lines = [json.loads(x) for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    last = [x for x in lines if x["event"] == "evaluation" and x["label"] == "greedy"][-1]
    assert found["metrics"]["eval/greedy/exact-answer"] == last["eval/greedy/exact-answer"]
    assert found["metrics"]["eval/greedy/think-format"] == last["eval/greedy/think-format"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nowhere", "--task", "arithmetic"), "model.path 'nowhere' cannot be loaded"),
        (("nowhere",), "missing: which task?"),
        (("nowhere", "--task", "arithmetics"), "arithmetic"),
        (("nowhere", "--task", "arithmetic", "--temperature", "0", "--samples", "2"), "the same"),
    ],
)
def test_what_is_wrong_is_said(shell, words: tuple[str, ...], message: str) -> None:
    shown = shell("eval", *words)
    assert shown.returncode not in (0, 1)
    assert message in shown.stderr
    assert "Traceback" not in shown.stderr
