"""Worker processes: what hangs is killed wherever it is, what dies is replaced, nothing is left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from grpo_core.config import load_config
from grpo_core.errors import ConfigError, RewardError
from grpo_core.plugins import Registry
from grpo_core.rewards import Reward
from grpo_core.run import _Builder
from grpo_core.scoring import Scorer

ISOLATED: dict[str, Any] = {"isolation": "process", "on_error": "drop"}


def pid_of(path: Path) -> int:
    return int(path.read_text().split()[-1])


@pytest.mark.parametrize("order", ["sleep in C", "spin", "regex", "grandchild"])
def test_what_hangs_is_killed_and_the_rest_is_scored(
    order: str,
    nasty: ModuleType,
    pids: Path,
    group: Any,
    make_scorer: Callable[..., Scorer],
    kinds: Any,
    alive: Callable[[int], bool],
    until: Callable[[Callable[[], object]], bool],
) -> None:
    scorer = make_scorer(nasty.obeys, **ISOLATED, timeout=2, overlap=True)
    fine = group("fine", number=0)
    scorer.score(0, fine)
    started = time.monotonic()
    rows = [*group("fine", number=0), *group(order, "fine", number=1), *group("fine", number=2)]
    scored = scorer.score(1, rows)
    assert time.monotonic() - started < 120, "hung for minutes"
    assert kinds(scored) == [1.0, "timeout", "timeout", 1.0]
    assert "gave no answer within 2 s; its process was killed" in scored.outcomes_F_B[0][1].reason
    assert scored.dropped_B == (False, True, True, False)
    assert scorer.work[0].restarts == 1
    hung = [int(pid) for pid in pids.read_text().split()]
    assert until(lambda: sum(map(alive, set(hung))) == 1), "only the worker that took its place"


@pytest.mark.parametrize("order", ["spin", "segfault"])
def test_one_that_hangs_or_crashes_costs_no_other_where_each_stands_alone(
    order: str,
    nasty: ModuleType,
    pids: Path,
    group: Any,
    make_scorer: Callable[..., Scorer],
    kinds: Any,
) -> None:
    scorer = make_scorer(nasty.EachAlone(), **ISOLATED, timeout=2)
    scored = scorer.score(0, group("fine", order, "also fine", number=0))
    assert scorer.work[0].restarts == 2, "once with the others, and once alone"
    assert kinds(scored) == [1.0, "timeout" if order == "spin" else "error", 1.0]
    assert [row.get("each-alone/length") for row in scored.logged_B] == [4, None, 9]


@pytest.mark.parametrize(
    ("order", "kind", "words"),
    [
        ("exit", "error", "lost its worker process, which ended with exit code 7"),
        ("segfault", "error", "was ended by SIGSEGV"),
        ("sys.exit", "error", "raised SystemExit: 3"),
        ("memory", "error", "raised MemoryError"),
        ("raise", "error", "raised KeyError: 'no such key'"),
        ("nan", "invalid", "returned nan, which is not finite"),
        ("string", "invalid", "returned '0.5' \\(str\\) for completion 0"),
    ],
)
def test_what_dies_or_lies_is_a_failure_of_its_group_only(
    order: str,
    kind: str,
    words: str,
    nasty: ModuleType,
    group: Any,
    make_scorer: Callable[..., Scorer],
    kinds: Any,
) -> None:
    scorer = make_scorer(nasty.obeys, **ISOLATED, memory_mb=1500, overlap=True)
    scored = scorer.score(0, [*group(order, number=0), *group("fine", number=1)])
    assert kinds(scored) == [kind, 1.0]
    assert re.search(words, scored.outcomes_F_B[0][0].reason)


def test_an_error_has_the_traceback_of_the_worker(
    nasty: ModuleType, group: Any, make_scorer: Callable[..., Scorer]
) -> None:
    scorer = make_scorer(nasty.obeys, isolation="process", label="mine")
    with pytest.raises(RewardError, match="reward 'mine' raised KeyError: 'no such key'") as caught:
        scorer.score(0, group("raise"))
    assert 'nasty_rewards.py", line' in caught.value.__notes__[0]


def test_what_it_prints_disturbs_nothing(
    nasty: ModuleType, group: Any, make_scorer: Callable[..., Scorer], kinds: Any
) -> None:
    scored = make_scorer(nasty.obeys, **ISOLATED).score(0, group("print"))
    assert kinds(scored) == [1.0]


def test_several_workers_at_a_time_give_the_same_in_the_same_order(
    nasty: ModuleType, pids: Path, group: Any, make_scorer: Callable[..., Scorer], kinds: Any
) -> None:
    rows = [r for n in range(6) for r in group("x" * n, "y" * (n + 1), number=n)]
    many = make_scorer(nasty.good, isolation="process", concurrency=3, overlap=True)
    one = make_scorer(nasty.good)
    assert kinds(many.score(0, rows)) == kinds(one.score(0, rows))
    assert len(set(pids.read_text().split())) > 2


def test_a_worker_holds_no_torch_and_nothing_of_the_trainer(
    nasty: ModuleType, group: Any, make_scorer: Callable[..., Scorer], kinds: Any
) -> None:
    assert "torch" in sys.modules
    assert kinds(make_scorer(nasty.SeesTorch(), isolation="process").score(0, group("a"))) == [1.0]


def test_async_rewards_run_in_workers_too(
    nasty: ModuleType, group: Any, make_scorer: Callable[..., Scorer], kinds: Any
) -> None:
    scorer = make_scorer(
        nasty.hangs_async, nasty.good, isolation="process", on_error="drop", timeout=1
    )
    scored = scorer.score(0, group("a"), part=True)
    assert kinds(scored) == ["timeout"]
    assert scored.outcomes_F_B[1][0].value == 1.0


def test_state_outlives_a_worker(
    nasty: ModuleType, group: Any, make_scorer: Callable[..., Scorer], kinds: Any
) -> None:
    scorer = make_scorer(nasty.Counts(), **ISOLATED)
    assert [kinds(scorer.score(step, group("a", "b"))) for step in range(2)] == [[1, 1], [2, 2]]
    assert kinds(scorer.score(2, group("exit"), part=True)) == ["error"]
    assert kinds(scorer.score(3, group("a"))) == [3]
    [component] = scorer.components
    assert component.state_dict() == {"calls": 3}
    component.load_state_dict({"calls": 10})
    assert kinds(scorer.score(4, group("a"))) == [11]


def test_state_cannot_be_in_several_places(
    nasty: ModuleType, group: Any, make_scorer: Callable[..., Scorer]
) -> None:
    scorer = make_scorer(nasty.Counts(), isolation="process", concurrency=2)
    with pytest.raises(RewardError, match=r"set execution\.concurrency to 1"):
        scorer.start()
    with pytest.raises(ConfigError, match="which group was finished first"):
        make_scorer(nasty.Counts(), overlap=True).start()


def test_what_cannot_be_sent_is_said_before_anything_runs(
    nasty: ModuleType, make_scorer: Callable[..., Scorer]
) -> None:
    with pytest.raises(ConfigError, match=r"cannot be sent to a worker process.*module"):
        make_scorer(lambda completions: [1.0], isolation="process")
    with pytest.raises(ValueError, match="memory_mb bounds a process of its own"):
        make_scorer(nasty.good, memory_mb=1000)


def test_one_named_in_a_config_is_built_in_the_worker_alone(tmp_path: Path, group: Any) -> None:
    """By import path of a file, with options; what cannot be built is named before sampling."""
    (tmp_path / "mine.py").write_text(
        "import os\n"
        "from pydantic import BaseModel\n"
        "class Mine:\n"
        "    class Config(BaseModel):\n"
        "        scale: float = 1.0\n"
        "    name = 'mine'\n"
        "    def __init__(self, config=None, context=None):\n"
        f"        assert os.getpid() != {os.getpid()}, 'built in the trainer'\n"
        "        if config.scale < 0: raise LookupError('no weights here')\n"
        "        self.scale, self.role = config.scale, context.role\n"
        "    def score(self, request):\n"
        "        assert self.role == 'reward'\n"
        "        return [self.scale * len(r.text) for r in request.rollouts_B]\n"
    )
    block = {"name": f"{tmp_path}/mine.py:Mine", "execution": {"isolation": "process"}}
    base = {"model": {"path": "x"}, "task": "arithmetic", "train": {"steps": 1}}
    for scale in (2.0, -1.0):
        config = {**base, "rewards": [{**block, "scale": scale}]}
        resolved = load_config([config], [], Registry.installed())
        [component] = resolved.rewards
        provider = _Builder(seed=0, run_dir=tmp_path).reward(component)
        scorer = Scorer([Reward(provider=provider, label="mine", execution=component.execution)])
        try:
            if scale > 0:
                [outcomes] = scorer.score(0, group("abc")).outcomes_F_B
                assert outcomes[0].value == 6.0  # type: ignore[union-attr]
            else:
                with pytest.raises(RewardError, match="reward 'mine' could not be built in its"):
                    scorer.start()
        finally:
            scorer.close()


ORPHAN = """\
import sys, threading
sys.path.insert(0, {folder!r})
import nasty_rewards
from conftest import rollout
from grpo_core.rewards import Reward
from grpo_core.scoring import Scorer
from grpo_core.settings import RewardExecution
scorer = Scorer([Reward(provider=nasty_rewards.obeys,
                        execution=RewardExecution(isolation="process"))])
scorer.score(0, [rollout({order!r})])
"""


@pytest.mark.parametrize("order", ["fine", "regex"])
def test_no_worker_outlives_a_trainer_that_is_killed(
    order: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alive: Any, until: Any
) -> None:
    """Idle, and in C code that holds the interpreter's lock."""
    pids = tmp_path / "pids"
    monkeypatch.setenv("PIDS", str(pids))
    script = ORPHAN.format(folder=str(Path(__file__).parent), order=order)
    idle = "import time; time.sleep(600)" if order == "fine" else ""
    trainer = subprocess.Popen([sys.executable, "-c", script + idle])
    assert until(lambda: trainer.poll() or (pids.exists() and pids.read_text().endswith("\n")))
    assert trainer.poll() is None
    time.sleep(0.3)  # into the matching
    worker = pid_of(pids)
    assert alive(worker)
    trainer.send_signal(signal.SIGKILL)
    trainer.wait()
    assert until(lambda: not alive(worker)), "the worker is an orphan"
