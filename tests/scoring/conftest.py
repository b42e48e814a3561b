"""Rollouts by their text, and rewards that worker processes can import."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest

from grpo_core.rewards import Reward
from grpo_core.scoring import Scorer
from grpo_core.settings import RewardExecution
from grpo_core.types import Prompt, Rollout, ScoredRollouts, Span


def rollout(text: str, group: int = 0, sample: int = 0, **columns: Any) -> Rollout:
    return Rollout(
        prompt=Prompt(id=f"p/{group}", content="q", columns=columns),
        prompt_ids=(1,),
        group=group,
        sample=sample,
        spans=(Span(token_ids=(2,), logprobs=(-0.5,), policy_version=0),),
        text=text,
        finish_reason="stop",
    )


@pytest.fixture
def group() -> Callable[..., list[Rollout]]:
    """``group("a", "b", number=3)``: the completions of one prompt."""

    def make(*texts: str, number: int = 0, **columns: Any) -> list[Rollout]:
        return [rollout(text, number, sample, **columns) for sample, text in enumerate(texts)]

    return make


def is_alive(pid: int) -> bool:
    """Whether there is such a process beside this one, and not only what is left of it."""
    if pid == os.getpid():
        return False
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def alive() -> Callable[[int], bool]:
    return is_alive


@pytest.fixture
def nasty(monkeypatch: pytest.MonkeyPatch, pids: Path) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import nasty_rewards

    return nasty_rewards


@pytest.fixture
def pids(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, until: Any) -> Iterator[Path]:
    """A file with the id of every worker process; all of them must be gone in the end."""
    path = tmp_path / "pids"
    path.touch()
    monkeypatch.setenv("PIDS", str(path))
    yield path
    found = [int(pid) for pid in path.read_text().split()]
    # What was killed takes a moment to be gone.
    until(lambda: not any(map(is_alive, found)))
    left = [pid for pid in found if is_alive(pid)]
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)
    assert not left, f"processes {left} outlived their scorer"


@pytest.fixture
def make_scorer() -> Iterator[Callable[..., Scorer]]:
    """``make_scorer(function, on_error="drop", timeout=1)``; closed at the end."""
    made: list[Scorer] = []

    def make(*functions: Any, gather: Any = list, progress: Any = None, **options: Any) -> Scorer:
        own = {k: options.pop(k) for k in ("weight", "on_error", "label") if k in options}
        how = RewardExecution(**options)
        rewards = [
            f if isinstance(f, Reward) else Reward(provider=f, execution=how, **own)
            for f in functions
        ]
        made.append(Scorer(rewards, gather=gather, progress=progress))
        return made[-1]

    yield make
    for scorer in made:
        scorer.close()


@pytest.fixture
def kinds() -> Callable[[ScoredRollouts], list[Any]]:
    """Of the first provider: a number, or the kind of outcome that there is in its place."""

    def found(scored: ScoredRollouts) -> list[Any]:
        return [
            getattr(o, "value", getattr(o, "kind", type(o).__name__.lower()))
            for o in scored.outcomes_F_B[0]
        ]

    return found
