"""Run all reward providers over a step's rollouts, some of them while others are still sampled."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from grpo_core.errors import ConfigError, RewardError
from grpo_core.rewards import CallableReward, Reward
from grpo_core.scoring.answers import failure_of
from grpo_core.scoring.engine import Engine
from grpo_core.scoring.lanes import Call, InProcess, Lane
from grpo_core.scoring.verdict import Gather, Judge
from grpo_core.types import (
    Abstained,
    Failed,
    RewardOutcome,
    Rollout,
    ScoredRollouts,
    ScoreRequest,
    TrainerState,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What one provider did for one ``score``."""

    name: str
    calls: Sequence[Call]
    abandoned: int | None
    """Threads and event loops that were given up; ``None`` for worker processes."""
    restarts: int | None
    """Worker processes that took the place of others; ``None`` without isolation."""

    @property
    def retries(self) -> int:
        return sum(call.retries for call in self.calls)

    def metrics(self) -> Mapping[str, list[float]]:
        """What the provider logged by ``log_metric``, in order of groups."""
        found: dict[str, list[float]] = {}
        for call in self.calls:
            for name, values in call.answer.metrics.items():
                found.setdefault(name, []).extend(values)
        return found


@dataclass(kw_only=True, slots=True)
class _Group:
    """Rollouts that were handed over before ``score``."""

    step: int
    rollouts: tuple[Rollout, ...]
    calls: dict[int, Future[Call]] = field(default_factory=dict)
    """By the lane's position."""

    def cancel(self) -> None:
        for call in self.calls.values():
            call.cancel()


class Scorer:
    """The reward providers of a run behind one call."""

    def __init__(
        self,
        rewards: Sequence[Reward],
        *,
        gather: Gather = list,
        progress: Callable[[int], TrainerState] | None = None,
    ) -> None:
        """Nothing is started before it is needed.

        Args:
            gather: concatenates a list over all ranks, so that all stop for the same reason.
            progress: how far the run is at a step, for ``trainer_state``.

        Raises:
            RewardError: two providers go by one name.
            ConfigError: a provider cannot be called, or not in a process of its own.
        """
        self._rewards = list(rewards)
        self._gather = gather
        self._progress = progress
        self.names = tuple(reward.label or name_of(reward) for reward in rewards)
        twice = sorted({name for name in self.names if self.names.count(name) > 1})
        if twice:
            raise RewardError(
                f"two rewards are called {twice[0]!r}; give one of them a `label`, so that "
                "metrics can tell them apart"
            )
        self._engine = Engine(self.names, rewards)
        self._judges = [Judge(*pair) for pair in zip(self.names, rewards, strict=True)]
        self._ready: dict[int, _Group] = {}
        """By the identity of a group's first rollout: a step's own rollouts and those of an
        evaluation before it have the same numbers."""
        self._counted = [0] * len(rewards)
        self.work: tuple[Work, ...] = ()
        """Of the last ``score``."""
        # Whoever lets go of a scorer need not know of its processes; also at interpreter exit.
        weakref.finalize(self, self._engine.close)

    @property
    def components(self) -> tuple[object, ...]:
        """What has the providers' state, in their order."""
        return tuple(lane.component for lane in self._engine.lanes)

    def start(self) -> None:
        """Start worker processes, so that what cannot be built is known at once.

        Raises:
            RewardError: a provider could not be built; names it.
        """
        for position, lane in enumerate(self._engine.lanes):
            try:
                self._engine.start(lane)
            except ConfigError:
                raise
            except Exception as error:
                source = self._rewards[position].source
                who = f"reward {lane.name!r}" + (f" ({source})" if source else "")
                made = RewardError(f"{who} {failure_of(error).reason}")
                made.add_note(getattr(error, "traceback", ""))
                raise made from error

    def submit(self, step: int, group: Sequence[Rollout]) -> None:
        """Begin to score a whole group, for providers that need no more than that; ``score`` takes
        it from there."""
        self.start()
        alive = tuple(r for r in group if r.error is None)
        if not alive:
            return
        entry = _Group(step=step, rollouts=alive)
        for position, lane in enumerate(self._engine.lanes):
            if lane.by_group:
                entry.calls[position] = self._ask(lane, step, alive)
        self._ready[id(alive[0])] = entry

    def score(
        self, step: int, rollouts: Sequence[Rollout], *, part: bool = False
    ) -> ScoredRollouts:
        """Ask every provider about every rollout that did not fail itself, and wait for all.

        Args:
            part: these are few of the step's rollouts, so that a provider with ``on_error="drop"``
                which fails on all of them need not be down.

        All ranks call it together.

        Raises:
            RewardError: on any rank, a provider with ``on_error="stop"`` failed, or one that drops
                had no success in the whole step or failed too often of late.
        """
        self.start()
        alive = [i for i, rollout in enumerate(rollouts) if rollout.error is None]
        rows_of: dict[int, list[int]] = {}
        for row in alive:
            rows_of.setdefault(rollouts[row].group, []).append(row)
        groups = {
            number: self._taken(step, tuple(rollouts[row] for row in rows))
            for number, rows in rows_of.items()
        }
        waiting: list[list[Future[Call]]] = []
        for position, lane in enumerate(self._engine.lanes):
            if lane.by_group:
                calls = [
                    g.calls.get(position) or self._ask(lane, step, g.rollouts)
                    for g in groups.values()
                ]
            else:
                calls = [self._ask(lane, step, [rollouts[i] for i in alive])] if alive else []
            waiting.append(calls)
        for key, left in list(self._ready.items()):
            # Others of this step may belong to an evaluation, or be sampled ahead.
            if left.step < step:
                left.cancel()
                del self._ready[key]
        done = [[call.result() for call in calls] for calls in waiting]
        self.work = tuple(self._work(position, calls) for position, calls in enumerate(done))
        self._decide(done, part=part)
        return self._scored(rollouts, done)

    def close(self) -> None:
        """End all threads and worker processes."""
        self._engine.close()

    def _ask(self, lane: Lane, step: int, rollouts: Sequence[Rollout]) -> Future[Call]:
        state = self._progress(step) if self._progress else None

        def request(rollouts_B: Sequence[Rollout]) -> ScoreRequest:
            return ScoreRequest(step=step, rollouts_B=tuple(rollouts_B), trainer_state=state)

        return self._engine.ask(lane, rollouts, request)

    def _taken(self, step: int, alive: tuple[Rollout, ...]) -> _Group:
        """What was begun for exactly these rollouts; else nothing."""
        found = self._ready.pop(id(alive[0]), None)
        if found is not None:
            if len(found.rollouts) == len(alive) and all(map(_is, found.rollouts, alive)):
                return found
            found.cancel()
        return _Group(step=step, rollouts=alive)

    def _work(self, position: int, calls: Sequence[Call]) -> Work:
        lane = self._engine.lanes[position]
        ours = isinstance(lane.calls, InProcess)
        total = lane.calls.abandoned if isinstance(lane.calls, InProcess) else lane.calls.restarts
        new, self._counted[position] = total - self._counted[position], total
        if new:
            what = "hung threads were left behind" if ours else "worker processes were replaced"
            logger.warning("reward %r: %d %s", lane.name, new, what)
        return Work(
            name=lane.name,
            calls=calls,
            abandoned=new if ours else None,
            restarts=None if ours else new,
        )

    def _decide(self, done: Sequence[Sequence[Call]], *, part: bool) -> None:
        mine = [
            [judge.tally(call) for call in calls]
            for judge, calls in zip(self._judges, done, strict=True)
        ]
        everyone = self._gather([mine])
        for position, judge in enumerate(self._judges):
            tallies = [tally for rank in everyone for tally in rank[position]]
            judge.decide(tallies, part=part)

    def _scored(
        self, rollouts: Sequence[Rollout], done: Sequence[Sequence[Call]]
    ) -> ScoredRollouts:
        row_of = {id(rollout): row for row, rollout in enumerate(rollouts)}
        logged: list[dict[str, Any]] = [{} for _ in rollouts]
        dropped, dropped_groups = set[int](), set[int]()
        columns = []
        for name, reward, calls in zip(self.names, self._rewards, done, strict=True):
            outcomes: list[RewardOutcome] = [
                Abstained(reason="the rollout itself failed") for _ in rollouts
            ]
            for call in calls:
                rows = [row_of[id(rollout)] for rollout in call.rollouts]
                for row, outcome in zip(rows, call.answer.outcomes_B, strict=True):
                    outcomes[row] = outcome
                    if isinstance(outcome, Failed) and reward.weight:
                        dropped.add(row)
                        if reward.on_error == "drop-group":
                            dropped_groups.add(rollouts[row].group)
                for column, values in call.answer.columns.items():
                    for row, value in zip(rows, values, strict=True):
                        logged[row][f"{name}/{column}"] = value
            columns.append(tuple(outcomes))
        return ScoredRollouts(
            providers_F=self.names,
            weights_F=tuple(reward.weight for reward in self._rewards),
            outcomes_F_B=tuple(columns),
            dropped_B=tuple(
                row in dropped or rollout.group in dropped_groups
                for row, rollout in enumerate(rollouts)
            ),
            logged_B=tuple(logged),
        )


def name_of(reward: Reward) -> str:
    """The provider's own name."""
    provider: Any = reward.provider
    if hasattr(provider, "score") or hasattr(provider, "make"):
        return str(provider.name)
    return CallableReward(provider).name


def _is(one: object, other: object) -> bool:
    return one is other
