"""MLflow, in a store of SQLite."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from story import REWARDS, SECRET, STEPS

from grpo_core.types import StepEnd
from grpo_observers import MLflow, MLflowConfig

pytest.importorskip("mlflow")
pytest.importorskip("sqlalchemy")


def client(run_dir: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{run_dir / 'mlflow.db'}")


@pytest.mark.usefixtures("nothing_lost")
def test_what_is_sent_is_read_back_and_a_resumed_run_goes_on(make_story: Any, capsys: Any) -> None:
    story = make_story()
    config = MLflowConfig(mode="offline", tags=("a",), group="g", every=2, timeout=120)
    first, second = MLflow(config), MLflow(config)
    story.play(first, last=2, status="failed")
    identity = first.state_dict()["run"]["id"]
    store = client(story.run_dir)
    assert store.get_run(identity).info.status == "FAILED"
    second.load_state_dict(first.state_dict())
    story.play(second, first=2)
    assert second.state_dict() == first.state_dict()
    (experiment,) = [e for e in store.search_experiments() if e.name == "grpo-core"]
    (run,) = store.search_runs([experiment.experiment_id])
    assert (run.info.run_id, run.info.run_name, run.info.status) == (identity, "run", "FINISHED")
    assert {"a", "g"} <= {*run.data.tags, *run.data.tags.values()}

    history = store.get_metric_history(identity, "reward/mean")
    assert sorted((m.step, m.value) for m in history) == REWARDS
    norms = store.get_metric_history(identity, "optim/grad_norm")
    assert [math.isnan(m.value) for m in norms] == [True] * STEPS
    assert run.data.params["config.train.steps"] == "4"
    assert run.data.params["config.rewards.0.api_key"] == "(hidden)"
    assert run.data.params["derived.rollouts_per_step"] == "4"
    artifacts = story.run_dir / "mlartifacts" / identity / "artifacts"
    sent = json.loads((artifacts / "samples/train/step-000003.json").read_text())
    rows = [dict(zip(sent["columns"], row, strict=True)) for row in sent["data"]]
    assert [r["reward/exact-answer"] for r in rows] == [3.0, 2.0, 1.0, 0.0]
    assert len(list((artifacts / "samples/eval/gsm8k_greedy").iterdir())) == 3
    written = (artifacts / "run.json").read_text() + str(run.data.params) + str(run.data.tags)
    assert not any(secret in written for secret in (SECRET, "s3cret", "me:pw"))
    assert f"mlflow ui --backend-store-uri sqlite:///{story.run_dir}" in capsys.readouterr().out

    # One odd name must not lose the others of its step.
    odd = StepEnd(step=9, steps=10, policy_version=9, metrics={"reward/fünf?/mean": 1.0, "b": 2.0})
    third = MLflow(config)
    third.load_state_dict(first.state_dict())
    third.grpo_run_start(story.start(9))
    third.grpo_step_end(odd)
    worker = third._worker
    assert worker is not None
    assert worker.stop(60)
    assert worker.failed == 0, worker.error
    assert store.get_metric_history(identity, "b")[0].value == 2.0
