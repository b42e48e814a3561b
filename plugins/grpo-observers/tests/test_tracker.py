"""What does not depend on the service: a backend that writes to memory, waits, and fails."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from story import REWARDS, SECRET

from grpo_core.errors import ConfigError
from grpo_core.types import RunEnd
from grpo_observers.config import TrackerConfig
from grpo_observers.tracker import Opened, Tracker
from grpo_observers.worker import Worker


class Memory:
    """Keeps what it is told; ``trouble`` is called first in every method."""

    def __init__(self, trouble: Any) -> None:
        self.trouble = trouble
        self.openings: list[Any] = []
        self.rows: list[tuple[int, Any]] = []
        self.tables: list[tuple[int, Any]] = []
        self.threads: set[int] = set()

    def open(self, opening: Any) -> Opened:
        self.openings.append(opening)
        self.trouble("open", opening)
        return Opened(where="here", state={"id": "offline" if opening.offline else "online"})

    def metrics(self, step: int, metrics: Any) -> None:
        self.threads.add(threading.get_ident())
        self.trouble("metrics", step)
        self.rows.append((step, metrics))

    def table(self, step: int, table: Any) -> None:
        self.tables.append((step, table))

    def close(self, end: Any) -> None:
        self.trouble("close", end)


class InMemory(Tracker):
    library = "json"
    extra = "memory"

    def __init__(self, trouble: Any = lambda *_: None, **options: Any) -> None:
        super().__init__(TrackerConfig(**{"timeout": 60, **options}), None)
        self.memory = Memory(trouble)

    def backend(self) -> Memory:
        return self.memory


def test_steps_evaluations_and_tables_arrive_from_another_thread(make_story: Any) -> None:
    tracker = InMemory(every=2, samples=2)
    make_story().play(tracker)
    rows = tracker.memory.rows
    assert [(s, m["reward/mean"]) for s, m in rows if "reward/mean" in m] == REWARDS
    assert [s for s, m in rows if "eval/gsm8k:greedy/exact-answer" in m] == [0, 4]
    tables = [(s, t.name, len(t.rows)) for s, t in tracker.memory.tables]
    assert tables == [
        (0, "notices", 1),
        (0, "samples/eval/gsm8k:greedy", 2),
        (1, "samples/train", 2),
        (2, "notices", 1),
        (3, "samples/train", 2),
        (4, "samples/eval/gsm8k:greedy", 2),
    ]
    evaluated = tracker.memory.tables[1][1]
    assert "reward/exact-answer" in evaluated.columns
    assert "advantage" not in evaluated.columns
    assert threading.get_ident() not in tracker.memory.threads


def test_no_secret_is_sent(make_story: Any) -> None:
    tracker = InMemory()
    make_story().play(tracker)
    facts = tracker.memory.openings[0].facts
    assert facts["config"]["train"] == {"steps": 4, "max_tokens": 7}
    assert facts["config"]["rewards"][0]["api_key"] == "(hidden)"
    assert facts["components"][0]["name"] == "judge"
    assert not any(secret in str(facts) for secret in (SECRET, "s3cret", "me:pw", "'x'"))


def test_no_text_leaves_with_zero_samples(make_story: Any) -> None:
    tracker = InMemory(samples=0)
    make_story().play(tracker)
    assert {t.name for _, t in tracker.memory.tables} == {"notices"}


def test_an_unreachable_service_means_offline(make_story: Any, caplog: Any) -> None:
    def refuse(call: str, detail: Any) -> None:
        if call == "open" and not detail.offline:
            raise ConnectionError("refused")

    tracker = InMemory(refuse)
    make_story().play(tracker)
    assert len(tracker.memory.rows) == 6
    assert tracker.state_dict() == {"run": {"id": "offline"}}
    assert "'memory' records on this machine only: ConnectionError: refused" in caplog.text


def test_a_service_that_never_answers_costs_its_timeout_and_no_more(
    make_story: Any, caplog: Any
) -> None:
    def hang_at(hanging: str) -> Any:
        def hang(call: str, detail: Any) -> None:
            if call == hanging and not getattr(detail, "offline", False):
                time.sleep(600)

        return hang

    started = time.monotonic()
    make_story().play(InMemory(hang_at("open"), timeout=1))
    make_story().play(InMemory(hang_at("close"), timeout=1))
    assert time.monotonic() - started < 60
    assert "no answer within 1 s" in caplog.text
    assert "did not take everything within 1 s" in caplog.text


def test_a_slow_service_does_not_slow_the_steps(make_story: Any) -> None:
    answers = threading.Event()
    tracker = InMemory(lambda call, _: call != "metrics" or answers.wait(60))
    story = make_story()
    tracker.grpo_run_start(story.start())
    for step in range(4):
        tracker.grpo_step_end(story.step(step))
    assert not tracker.memory.rows
    answers.set()
    tracker.grpo_run_end(RunEnd(run_dir=story.run_dir, status="finished", steps_done=4))
    assert len(tracker.memory.rows) == 4


def test_what_fails_is_counted_and_told_once_at_once_and_at_the_end(
    make_story: Any, caplog: Any
) -> None:
    def fail(call: str, detail: Any) -> None:
        if call == "metrics" and detail in (2, 3):
            raise OSError("disk full")

    tracker = InMemory(fail)
    make_story().play(tracker)
    assert [s for s, m in tracker.memory.rows if "reward/mean" in m] == [1, 4]
    messages = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(messages) == 2
    assert "OSError: disk full; the run goes on" in messages[0]
    assert "2 records are lost" in messages[1]


def test_off_means_that_nothing_is_tried(make_story: Any, caplog: Any) -> None:
    def fail(call: str, detail: Any) -> None:
        raise SystemExit("not today")

    tracker = InMemory(fail)
    make_story().play(tracker)
    assert len(tracker.memory.openings) == 2
    assert "is off: SystemExit: not today" in caplog.text
    disabled = InMemory(mode="disabled")
    make_story().play(disabled)
    assert not disabled.memory.openings


def test_the_state_goes_on_in_the_same_run(make_story: Any) -> None:
    first = InMemory()
    make_story().play(first, last=2)
    second = InMemory()
    second.load_state_dict(first.state_dict())
    make_story().play(second, first=2)
    assert first.memory.openings[0].resumed is None
    assert second.memory.openings[0].resumed == {"id": "online"}
    # Another rank, which never opened anything.
    other = InMemory()
    other.load_state_dict(InMemory().state_dict())
    assert other.state_dict() == {"run": None}


def test_an_id_outlives_a_session_in_which_everything_failed(make_story: Any) -> None:
    def fail(call: str, detail: Any) -> None:
        raise OSError("no")

    tracker = InMemory(fail)
    tracker.load_state_dict({"run": {"id": "x"}})
    make_story().play(tracker)
    assert tracker.state_dict() == {"run": {"id": "x"}}


def test_a_full_queue_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grpo_observers.worker.LIMIT", 2)
    worker = Worker("observer 'x'")
    held, hold = threading.Event(), threading.Event()
    worker.send(lambda: held.set() or hold.wait())
    assert held.wait(60)
    for _ in range(5):
        worker.send(lambda: None)
    assert worker.failed == 3
    hold.set()
    assert worker.stop(60)


@pytest.mark.parametrize(
    ("module", "name", "library"),
    [
        ("comet", "Comet", "comet_ml"),
        ("mlflow", "MLflow", "mlflow"),
        ("trackio", "Trackio", "trackio"),
        ("wandb", "Wandb", "wandb"),
    ],
)
def test_a_missing_library_is_named_with_the_command_that_installs_it(
    module: str, name: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    observer = getattr(__import__(f"grpo_observers.{module}", fromlist=[name]), name)
    with pytest.raises(ConfigError, match=rf"'{library}': pip install grpo-core\[{module}\]"):
        observer()
    observer(observer.Config(mode="disabled"))


def test_nothing_is_imported_before_a_run_starts() -> None:
    code = (
        "import sys, grpo_observers as g\n"
        "for name in ('Comet', 'MLflow', 'Trackio', 'Wandb'):\n"
        "    kind = getattr(g, name); kind(kind.Config(mode='disabled'))\n"
        "print(sorted({'comet_ml', 'mlflow', 'trackio', 'wandb', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout == "[]\n"
