"""Threads, event loop, retries and overlap in one process."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from grpo_core.errors import RewardError
from grpo_core.rewards import Reward
from grpo_core.scoring import Scorer, lanes, loops
from grpo_core.settings import RewardExecution
from grpo_core.types import Abstained, ScoreRequest, TrainerState, Value

Make = Callable[..., Scorer]


class Typed:
    """Scores each group by itself: the length of a text less the shortest of its group."""

    name = "typed"

    def __init__(self) -> None:
        self.calls: list[tuple[int, ...]] = []
        self.started = threading.Event()

    def score(self, request: ScoreRequest) -> list[Value]:
        self.calls.append(tuple(r.group for r in request.rollouts_B))
        self.started.set()
        shortest = min(len(r.text) for r in request.rollouts_B)
        return [Value(value=float(len(r.text) - shortest)) for r in request.rollouts_B]


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "PAUSE_SECONDS", 0.01)


def test_a_hanging_thread_is_left_behind_counted_and_told(
    group: Any, make_scorer: Make, kinds: Any, caplog: pytest.LogCaptureFixture
) -> None:
    release = threading.Event()

    def hangs(completions: list[str]) -> list[float]:
        if completions == ["hang"]:
            release.wait()
        return [1.0]

    scorer = make_scorer(hangs, on_error="drop", timeout=1, overlap=True)
    with caplog.at_level(logging.WARNING):
        scored = scorer.score(0, [*group("hang", number=0), *group("a", number=1)])
    assert kinds(scored) == ["timeout", 1.0]
    assert scorer.work[0].abandoned == 1
    assert "reward 'hangs': 1 hung threads were left behind" in caplog.text
    assert kinds(scorer.score(1, group("a"))) == [1.0]
    assert scorer.work[0].abandoned == 0
    release.set()


def test_a_hanging_thread_does_not_keep_the_interpreter(tmp_path: Path) -> None:
    script = (
        "import sys, time\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from conftest import rollout\n"
        "from grpo_core.rewards import Reward\n"
        "from grpo_core.scoring import Scorer\n"
        "from grpo_core.settings import RewardExecution\n"
        "def hangs(completions): time.sleep(600)\n"
        "scorer = Scorer([Reward(provider=hangs, execution=RewardExecution(timeout=0.2))])\n"
        "scorer.score(0, [rollout('a')])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False
    )
    assert "reward 'hangs' gave no answer within 0.2 s" in done.stderr
    assert done.returncode == 1


def test_async_calls_are_cancelled_at_the_timeout(
    group: Any, make_scorer: Make, kinds: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loops, "GRACE_SECONDS", 60)  # of a loop that only waits for a core
    cancelled = threading.Event()

    async def hangs(completions: list[str]) -> list[float]:
        try:
            await asyncio.sleep(600)
        finally:
            cancelled.set()
        return [1.0]

    scorer = make_scorer(hangs, on_error="drop", timeout=0.1)
    assert kinds(scorer.score(0, group("a"), part=True)) == ["timeout"]
    assert cancelled.wait(60)
    assert scorer.work[0].abandoned == 0


def test_a_blocked_event_loop_is_replaced_and_its_line_named(
    nasty: ModuleType, group: Any, make_scorer: Make, kinds: Any, pids: Path
) -> None:
    async def patient(completions: list[str]) -> list[float]:
        await asyncio.sleep(0.3)
        return [2.0]

    patiently = Reward(provider=patient, execution=RewardExecution(retries=1))
    scorer = make_scorer(nasty.blocks_the_loop, patiently, on_error="drop", timeout=0.3)
    scored = scorer.score(0, group("a"), part=True)
    assert kinds(scored) == ["timeout"]
    assert "nasty_rewards.py" in scored.outcomes_F_B[0][0].reason
    assert "an async reward must not call what blocks" in scored.outcomes_F_B[0][0].reason
    assert scorer.work[0].abandoned == 1
    assert scored.outcomes_F_B[1][0] == Value(value=2.0), "lost with the loop, and asked again"
    assert scorer.work[1].retries == 1


def test_clients_of_an_async_reward_live_from_step_to_step(group: Any, make_scorer: Make) -> None:
    loops = []

    async def reward(completions: list[str]) -> list[float]:
        loops.append(asyncio.get_running_loop())
        return [1.0]

    scorer = make_scorer(reward)
    for step in range(3):
        scorer.score(step, group("a"))
    assert len(set(map(id, loops))) == 1
    assert not loops[0].is_closed()
    scorer.close()
    assert loops[0].is_closed()


@pytest.mark.parametrize("way", ["def", "async def", "def that returns a coroutine"])
def test_what_fails_sometimes_is_asked_again(
    way: str, group: Any, make_scorer: Make, kinds: Any, short_pauses: None
) -> None:
    attempts: list[str] = []

    def reward(completions: list[str], log_extra: Any) -> list[float]:
        attempts.append(completions[0])
        log_extra("attempt", [len(attempts)])
        if len(attempts) < 3:
            raise ConnectionError("503")
        return [1.0]

    async def later(completions: list[str], log_extra: Any) -> list[float]:
        return reward(completions, log_extra)

    function: Any = {"def": reward, "async def": later}.get(way)
    if function is None:

        def function(completions: list[str], log_extra: Any) -> Any:
            return later(completions, log_extra)

    scorer = make_scorer(function, retries=2)
    scored = scorer.score(0, group("a"))
    assert kinds(scored) == [1.0]
    assert scorer.work[0].retries == 2
    assert [list(row.values()) for row in scored.logged_B] == [[3]], "only of what counted"


def test_retries_are_bounded_and_verdicts_are_final(
    group: Any, make_scorer: Make, short_pauses: None
) -> None:
    calls: list[int] = []

    def down(completions: list[str]) -> list[float]:
        calls.append(1)
        raise ConnectionError("503")

    with pytest.raises(RewardError, match=r"raised ConnectionError: 503 \(3 attempts\)"):
        make_scorer(down, retries=2).score(0, group("a"))
    assert len(calls) == 3
    with pytest.raises(RewardError, match="returned 0 values for 1 completions;"):
        make_scorer(lambda completions: [], retries=2).score(0, group("a"))


def test_pauses_double_and_leave_the_global_generator_alone(
    group: Any, make_scorer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    import random

    def down(completions: list[str]) -> list[float]:
        raise ConnectionError

    monkeypatch.setattr(lanes, "PAUSE_SECONDS", 0.2)
    random.seed(1)
    before = random.getstate()
    scorer = make_scorer(down, retries=2, on_error="drop")
    scorer.score(0, group("a"), part=True)
    assert random.getstate() == before
    # 0.2 and 0.4, less up to a quarter; not 0.2 twice.
    assert scorer.work[0].calls[0].seconds >= 0.45


@pytest.mark.parametrize(("concurrency", "most"), [(None, 1), (1, 1), (3, 3)])
def test_no_more_threads_at_a_time_than_allowed(
    concurrency: int | None, most: int, group: Any, make_scorer: Make
) -> None:
    running, seen, lock = [0], [0], threading.Lock()
    all_of_them = threading.Event()

    def reward(completions: list[str]) -> list[float]:
        with lock:
            running[0] += 1
            seen[0] = max(seen[0], running[0])
            if running[0] == most:
                all_of_them.set()
        assert all_of_them.wait(60)
        time.sleep(0.02)  # for one too many
        with lock:
            running[0] -= 1
        return [0.0]

    rows = [r for number in range(8) for r in group("a", number=number)]
    make_scorer(reward, overlap=True, concurrency=concurrency).score(0, rows)
    assert seen == [most]


def test_a_group_is_scored_before_the_others_are_there(
    group: Any, make_scorer: Make, kinds: Any
) -> None:
    typed, batches = Typed(), []

    def trl(completions: list[str]) -> list[float]:
        batches.append(len(completions))
        return [0.0] * len(completions)

    scorer = make_scorer(typed, trl)
    second, first = group("ccc", "d", number=1), group("a", "bb", number=0)
    scorer.submit(5, second)
    assert typed.started.wait(60), "scoring waits for score()"
    assert not batches, "a function in TRL's convention sees the whole step"
    scorer.submit(5, first)
    scored = scorer.score(5, [*first, *second])
    assert kinds(scored) == [0.0, 1.0, 2.0, 0.0]
    assert sorted(typed.calls) == [(0, 0), (1, 1)], "no group is scored twice"
    assert batches == [4]


def test_what_was_handed_over_and_is_not_asked_for_is_dropped(
    group: Any, make_scorer: Make, kinds: Any
) -> None:
    typed = Typed()
    scorer = make_scorer(typed)
    scorer.submit(0, group("aaaa", "b"))
    scorer.submit(0, group("left", number=7))
    # The same numbers, but other rollouts: nothing of the first ones may be taken for them.
    assert kinds(scorer.score(0, group("a", "bb"))) == [0.0, 1.0]


@pytest.mark.parametrize(
    ("attribute", "overlap", "calls"),
    [
        (False, None, [(0,), (1,)]),
        (True, None, [(0, 1)]),
        (False, False, [(0, 1)]),
        (True, True, [(0,), (1,)]),
    ],
)
def test_who_gets_groups_and_who_the_batch(
    attribute: bool, overlap: bool | None, calls: Any, group: Any, make_scorer: Make
) -> None:
    typed: Any = Typed()
    typed.needs_batch = attribute
    make_scorer(typed, overlap=overlap).score(0, [*group("a", number=0), *group("b", number=1)])
    assert sorted(typed.calls) == calls


def test_logs_stay_with_their_rows(group: Any, make_scorer: Make) -> None:
    """Groups finish in another order than they stand, and one has nothing to log."""

    class Logs:
        name = "logs"

        def score(self, request: ScoreRequest) -> list[Any]:
            texts = [r.text for r in request.rollouts_B]
            time.sleep(0.1 if "a" in texts else 0)
            if "quiet" not in texts:
                request.log.extra("upper", [t.upper() for t in texts])
                request.log.metric("letters", sum(map(len, texts)))
            return [Abstained() for _ in texts]

    scorer = make_scorer(Logs(), concurrency=3)
    rows = [*group("a", "bb", number=0), *group("quiet", number=1), *group("c", number=2)]
    scored = scorer.score(0, rows)
    assert scored.logged_B == (
        {"logs/upper": "A"}, {"logs/upper": "BB"}, {}, {"logs/upper": "C"},
    )  # fmt: skip
    assert scorer.work[0].metrics() == {"letters": [3.0, 1.0]}


@pytest.mark.parametrize("isolation", ["none", "process"])
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (("extra", "gold", ["4"]), r"log_extra\('gold'\) got 1 values for 2 completions"),
        (("metric", "mean", 1.0), r"log_metric\('mean'\) takes the name of one of the core's"),
        (("metric", "x", "high"), r"log_metric\('x'\) got 'high', which is no number"),
    ],
)
def test_wrong_logs_are_errors_that_name_the_provider(
    call: Any, words: str, isolation: str, group: Any, make_scorer: Make, nasty: ModuleType
) -> None:
    scorer = make_scorer(nasty.Logs(call), isolation=isolation)
    with pytest.raises(RewardError, match=f"reward 'Logs' raised ValueError: {words}"):
        scorer.score(0, group("a", "b"))


def test_a_function_sees_how_far_the_run_is(group: Any, make_scorer: Make) -> None:
    states = []

    def reward(completions: list[str], trainer_state: Any) -> list[float]:
        states.append(trainer_state)
        return [0.0]

    def progress(step: int) -> TrainerState:
        return TrainerState(global_step=2 * step, max_steps=10, epoch=0.5, num_train_epochs=1)

    make_scorer(reward, progress=progress).score(3, group("a"))
    assert states == [TrainerState(global_step=6, max_steps=10, epoch=0.5, num_train_epochs=1)]


def test_a_function_cannot_change_what_others_see(group: Any, make_scorer: Make) -> None:
    def vandal(completions: list[str], tests: list[Any], completion_ids: Any) -> list[float]:
        tests[0].clear()
        completion_ids[0].clear()
        completions.clear()
        return [0.0]

    def reader(completions: list[str], tests: list[Any], completion_ids: Any) -> list[float]:
        return [float(len(completions) + len(tests[0]) + len(completion_ids[0]))]

    rows = group("a", tests=["x", "y"])
    make_scorer(vandal).score(0, rows)
    [outcomes] = make_scorer(reader).score(0, rows).outcomes_F_B
    assert outcomes == (Value(value=4.0),)
