"""The worked example does what its page says."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from grpo_core import load_run, train

EXAMPLE = Path(__file__).parents[1] / "examples/calculator"


@pytest.mark.slow
def test_the_policy_learns_to_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "calculator"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("runs"))
    monkeypatch.chdir(folder)
    result = train(load_run("run.yaml"))
    first, last = result.evaluations[0], result.evaluations[-1]
    assert first["eval/sampled/exact-answer"] < 0.35
    assert first["eval/sampled/tools/calls"] < 0.35
    assert last["eval/sampled/exact-answer"] > 0.8
    assert last["eval/sampled/tools/calls"] > 0.9
    # It is the tool that does it: sampler and trainer agree on every turn, all the way.
    assert max(step["ratio/sampler_mismatch_max"] for step in result.history) < 1e-3


def test_the_checkpoint_guesses_and_can_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small and fast: the config resolves, and the first step has calls that are right."""
    folder = tmp_path / "calculator"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("runs"))
    monkeypatch.chdir(folder)
    sets = ["train.steps=1", "evaluation=null", "savers=[]", "train.prompts_per_step=4"]
    (step,) = train(load_run("run.yaml", sets=sets)).history
    assert 0 < step["tools/calls"] < 0.6
    assert step["reward/exact-answer/mean"] > 0
