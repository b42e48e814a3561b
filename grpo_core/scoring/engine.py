"""Where the calls of a run's rewards are scheduled: an event loop that runs no code of others."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from grpo_core.rewards import Reward
from grpo_core.scoring.lanes import Call, Lane
from grpo_core.scoring.loops import AsyncCalls, LoopThread
from grpo_core.types import Rollout, ScoreRequest


class Engine:
    """Lanes, and the threads and processes behind them; nothing runs before ``start``."""

    def __init__(self, names: Sequence[str], rewards: Sequence[Reward]) -> None:
        self._providers = AsyncCalls()
        self.lanes = [
            Lane(name, reward, self._providers) for name, reward in zip(names, rewards, strict=True)
        ]
        self._scheduler: LoopThread | None = None
        self._process = 0
        self._started = set[str]()

    def start(self, lane: Lane) -> None:
        """Start the scheduler, and what of a lane runs in processes.

        Raises:
            Exception: its provider cannot be built, or not be called as asked for.
        """
        if self._scheduler is None or self._process != os.getpid():
            self._scheduler, self._process = LoopThread("grpo-rewards"), os.getpid()
            self._started.clear()
        if lane.name not in self._started:
            self._scheduler.submit(lane.start()).result()
            self._started.add(lane.name)

    def ask(
        self,
        lane: Lane,
        rollouts: Sequence[Rollout],
        request: Callable[[Sequence[Rollout]], ScoreRequest],
    ) -> Future[Call]:
        """Begin a call."""
        assert self._scheduler is not None
        return self._scheduler.submit(lane.ask(rollouts, request))

    def close(self, *_: Any) -> None:
        """End all calls, threads and processes. A thread that hangs is left behind."""
        # After a fork the threads are the parent's.
        scheduler, self._scheduler = self._scheduler, None
        if scheduler is None or self._process != os.getpid():
            return
        scheduler.close()
        for lane in self.lanes:
            lane.calls.close()
        self._providers.close()
