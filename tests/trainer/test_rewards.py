"""Rewards in a real run: overlap, logs, dropped rollouts, state, ranks."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from grpo_core import CheckpointSettings, EvaluationSettings, Run, hookimpl, train
from grpo_core.rewards import Reward
from grpo_core.settings import RewardExecution
from grpo_core.testing import ScriptedConfig, ScriptedGenerator
from grpo_core.types import Failed, GeneratedGroup, GenerateRequest, ScoreRequest, Value
from grpo_generator_hf import HFGenerator
from grpo_savers import RolloutsSaver

MakeRun = Callable[..., Run]


class Watch:
    def __init__(self) -> None:
        self.events: list[Any] = []

    @hookimpl
    def grpo_rollouts_scored(self, event: Any) -> None:
        self.events.append(event)


class Typed:
    """The sum of the ids, group by group; may dawdle and may fail."""

    name = "typed"

    def __init__(
        self, *, dawdles: bool = False, fails: Callable[[Any], bool] | None = None
    ) -> None:
        self.scored = threading.Event()
        self._dawdles, self._fails = dawdles, fails

    def score(self, request: ScoreRequest) -> list[Any]:
        if self._dawdles:
            time.sleep(random.Random(time.perf_counter_ns()).random() * 0.05)
        self.scored.set()
        failed = Failed(kind="error", reason="raised OSError")
        return [
            failed if self._fails and self._fails(r) else Value(value=float(sum(r.token_ids) % 7))
            for r in request.rollouts_B
        ]


class WaitsForTheReward(ScriptedGenerator):
    """Has its second group only when the first one has been scored."""

    def __init__(self, scored: threading.Event) -> None:
        super().__init__(ScriptedConfig(completions=("yes", "no")))
        self._scored = scored

    def generate(self, request: GenerateRequest) -> Iterator[GeneratedGroup]:
        for group in super().generate(request):
            yield group
            assert self._scored.wait(30), "a group that is there is not scored"


def test_groups_are_scored_while_others_are_sampled(make_run: MakeRun) -> None:
    typed = Typed()
    run = make_run(generator=WaitsForTheReward(typed.scored), rewards=[typed])
    assert train(run).steps_done == 2


def test_nothing_depends_on_when_a_group_is_scored(make_run: MakeRun, tmp_path: Path) -> None:
    """Not on the number of threads either, with dynamic sampling."""

    def go(name: str, *, dawdles: bool, **how: Any) -> tuple[list[torch.Tensor], Any]:
        reward = Reward(provider=Typed(dawdles=dawdles), execution=RewardExecution(**how))
        run = make_run(
            generator=HFGenerator(),
            rewards=[reward],
            output=tmp_path / name,
            train={"prompts_per_step": 3, "dynamic_sampling": {"max_rounds": 3}},
        )
        history = [
            {k: v for k, v in step.items() if not k.startswith("time/")}
            for step in train(run).history
        ]
        return [p.detach().clone() for p in run.policy.model.parameters()], history

    at_once, metrics = go("batch", dawdles=False, overlap=False)
    for how in ({"concurrency": 4}, {"concurrency": 1}):
        late, late_metrics = go(f"late-{how['concurrency']}", dawdles=True, **how)
        assert all(map(torch.equal, at_once, late))
        assert metrics == late_metrics


def logs(
    completions: list[str], log_extra: Any, log_metric: Any, trainer_state: Any
) -> list[float]:
    """TRL's signature; the second step logs nothing."""
    if trainer_state.global_step == 0:
        log_extra("upper", [c.upper() for c in completions])
    log_metric("progress", trainer_state.global_step / trainer_state.max_steps)
    return [float("yes" in c) for c in completions]


def test_what_rewards_log_reaches_table_metrics_and_evaluation(
    make_run: MakeRun, list_task: Any, tmp_path: Path
) -> None:
    run = make_run(
        task=list_task(["a?", "b?"], ["c?"]),
        rewards=[logs],
        savers=[RolloutsSaver()],
        evaluation=EvaluationSettings(sampling={"greedy": {"temperature": 0}}),
        train={"passes_per_step": 2},
    )
    result = train(run)
    assert [step["reward/logs/progress"] for step in result.history] == [0.0, 0.5]
    assert result.evaluations[-1]["eval/greedy/logs/progress"] == 1.0
    tables = [
        pq.read_table(tmp_path / "run" / "rollouts" / f"step-{step:06d}.parquet")
        for step in range(2)
    ]
    first, second = (table["logged/logs/upper"].to_pylist() for table in tables)
    assert first == [f'"{c.upper()}"' for c in tables[0]["completion"].to_pylist()]
    assert second == [None] * 4


@pytest.mark.parametrize("on_error", ["drop", "drop-group"])
def test_a_failure_moves_nothing(make_run: MakeRun, on_error: Any) -> None:
    """The other reward's value alone must not become an advantage."""
    watch = Watch()

    def other(completions: list[str]) -> list[float]:
        return [float(i) for i, _ in enumerate(completions)]

    typed = Typed(fails=lambda r: (r.group, r.sample) == (0, 1))
    run = make_run(
        rewards=[Reward(provider=typed, on_error=on_error), other],
        observers=[watch],
        train={"steps": 1, "group_size": 3},
    )
    metrics = train(run).history[0]
    [event] = watch.events
    totals = [
        sum(o.value for o in outcomes) if all(isinstance(o, Value) for o in outcomes) else None
        for outcomes in zip(*event.scored.outcomes_F_B, strict=True)
    ]
    assert totals[1] is None
    left = [totals[0], totals[2]] if on_error == "drop" else []
    for row in range(3):
        expected = 0.0
        if row != 1 and left:
            mean = sum(left) / 2
            spread = (sum((t - mean) ** 2 for t in left) / 1) ** 0.5
            expected = (totals[row] - mean) / (spread + 1e-4)
        assert event.advantages_B[row] == pytest.approx(expected, abs=1e-9)
    assert any(event.advantages_B[3:])
    assert metrics["reward/typed/failed"] == metrics["reward/typed/error"] == 1 / 6
    assert metrics["reward/dropped"] == (1 / 6 if on_error == "drop" else 3 / 6)
    assert metrics["reward/other/failed"] == 0


def test_the_state_of_an_isolated_reward_is_in_the_checkpoints(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "scoring"))
    monkeypatch.setenv("PIDS", str(tmp_path / "pids"))
    import nasty_rewards

    def make(steps: int) -> Run:
        isolated = RewardExecution(isolation="process")
        return make_run(
            rewards=[Reward(provider=nasty_rewards.Counts(), execution=isolated)],
            train={"steps": steps},
            checkpoints=CheckpointSettings(every_steps=1, every_minutes=0),
        )

    train(make(2))
    resumed = train(make(4), resume="newest", accept_changes=True)
    assert [step["reward/Counts/mean"] for step in resumed.history] == [1, 2, 3, 4]
    pids = set((tmp_path / "pids").read_text().split())
    assert len(pids) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_reward_that_fails_on_one_rank_ends_all_of_them(tiny_model: Path, tmp_path: Path) -> None:
    """Each with its name, and not after the collective's ten minutes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    command += ["2", str(Path(__file__).with_name("failing_rank.py")), str(tiny_model)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(tmp_path / "run")],
        env=environment, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    for rank in range(2):
        said = (tmp_path / "run" / f"rank-{rank}.txt").read_text()
        assert "reward 'sick' raised OSError: only here; first seen at prompt" in said
