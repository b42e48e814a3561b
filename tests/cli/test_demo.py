"""``grpo demo`` up to the point where training starts: the settings that were measured."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from grpo_core.demo import checkpoint


def settings(done) -> dict:
    assert done.exit_code == 0, done.stderr
    return yaml.safe_load(done.stdout)


def test_the_job_is_the_one_that_was_measured(grpo) -> None:
    shown = settings(grpo("demo", "--dry-run"))
    assert shown["model"]["path"] == str(checkpoint("habit"))
    assert shown["output"] == "runs/demo"
    train = shown["train"]
    assert (train["steps"], train["prompts_per_step"], train["group_size"]) == (70, 16, 8)
    assert (shown["sampling"]["temperature"], shown["sampling"]["max_tokens"]) == (1.0, 48)
    optimizer = shown["optimizer"]
    # 1e-3 was measured to destroy such a policy within 20 steps.
    assert optimizer["learning_rate"] < 1e-3
    assert (optimizer["schedule"], optimizer["betas"]) == ("linear", [0.9, 0.95])
    assert [(r["name"], r["weight"]) for r in shown["rewards"]] == [
        ("exact-answer", 1.0),
        ("think-format", 0.2),
    ]
    assert (shown["loss"]["name"], shown["reference"]["name"]) == ("dapo", "none")
    evaluation = shown["evaluation"]
    assert evaluation["prompts"] == 256
    assert list(evaluation["sampling"]) == ["sampled", "greedy"]


def test_options(grpo) -> None:
    shown = settings(grpo("demo", "--plain", "--seed", "3", "-o", "there", "--dry-run"))
    assert shown["model"]["path"] == str(checkpoint("plain"))
    assert (shown["train"]["seed"], shown["train"]["steps"]) == (3, 300)
    assert shown["optimizer"]["learning_rate"] == 2e-4
    assert shown["output"] == "there"
    assert settings(grpo("demo", "--steps", "5", "--dry-run"))["train"]["steps"] == 5
    assert settings(grpo("demo", "--plain", "--steps", "5", "--dry-run"))["train"]["steps"] == 5


def test_each_run_gets_a_fresh_folder(grpo) -> None:
    for expected in ("runs/demo", "runs/demo-2", "runs/demo-3"):
        assert settings(grpo("demo", "--dry-run"))["output"] == expected
        Path(expected).mkdir(parents=True)
    assert settings(grpo("demo", "--plain", "--dry-run"))["output"] == "runs/demo-plain"


def test_a_folder_that_was_asked_for_must_be_free(grpo) -> None:
    Path("mine").mkdir()
    settings(grpo("demo", "--output", "mine", "--dry-run"))
    Path("mine/config.yaml").write_text("")
    done = grpo("demo", "--output", "mine")
    assert done.exit_code == 2
    assert "output folder 'mine' already holds a run" in done.stderr


@pytest.mark.parametrize("words", [("--steps", "0"), ("--seed", "-1")])
def test_impossible_numbers(grpo, words: tuple[str, ...]) -> None:
    assert grpo("demo", *words).exit_code == 2
