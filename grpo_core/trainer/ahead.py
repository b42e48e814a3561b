"""``train.schedule: ahead``: rollouts of later steps are sampled while the policy is updated."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

from grpo_core.trainer.attestation import require_version
from grpo_core.trainer.checkpoints.packing import pack
from grpo_core.trainer.observe import observe_sampled
from grpo_core.trainer.sampling import collect, places, training_request

if TYPE_CHECKING:
    from grpo_core.trainer.run import Run
    from grpo_core.types import Rollout, RolloutRequest

logger = logging.getLogger(__name__)

PATIENCE = 30.0
"""Seconds for a generator that was closed to end what it does in other threads."""


@dataclass(slots=True)
class Batch:
    """The rollouts of one step on this rank, sampled or being sampled."""

    step: int
    since: int
    """The policy version that the generator held when it began."""
    rollouts: Future[list[Rollout]]
    seconds: float = 0.0

    @property
    def whole(self) -> bool:
        done = self.rollouts.done() and not self.rollouts.cancelled()
        return done and self.rollouts.exception() is None


class Ahead:
    """Samples in threads of its own; everything that ranks do together stays in the main one.

    Without ``ahead_in_flight`` sampling never meets a change of weights: ``rest`` is called before
    each. The rollouts of step ``s`` then come from the weights of step ``s - 1``, whatever the
    machine's speed, and a resumed run has them from its checkpoint.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._batches: dict[int, Batch] = {}
        self._taken: Batch | None = None
        self._threads: list[threading.Thread] = []
        self._warned = False

    def rest(self) -> None:
        """Wait until nothing is being sampled, unless weights may change meanwhile."""
        under_way = [batch.rollouts for batch in self._batches.values()]
        if under_way and not self._run.settings.ahead_in_flight:
            with self._run.metrics.timed("sample"):
                wait(under_way)

    def rollouts(self, step: int) -> list[Rollout]:
        """Those of a step, while those ahead of it are sampled; the weights have been synced."""
        settings = self._run.settings
        # Further rounds of this step come before the next one: generators whose weights cannot
        # change while they sample need not serve two threads at once either.
        waits = settings.dynamic_sampling is not None and not settings.ahead_in_flight
        self._begin(step, step if waits else step + settings.ahead_steps)
        return self._take(step)

    def go_on(self, step: int) -> None:
        """Sample ahead of a step that has all its rollouts, unless that is being done already."""
        self._begin(step + 1, step + self._run.settings.ahead_steps)

    def state(self, steps_done: int) -> list[dict[str, Any]]:
        """What has been sampled for steps that are not done; the rest is sampled when the run
        resumes, from the same prompts."""
        found = []
        for batch in (self._taken, *self._batches.values()):
            if batch is None or batch.step < steps_done or not batch.whole:
                continue
            rollouts = batch.rollouts.result()
            try:
                pack(rollouts, {})
            except TypeError as error:
                if not self._warned:
                    logger.warning(
                        "rollouts sampled ahead cannot be written into checkpoints; a run that "
                        "resumes samples them again: %s",
                        error,
                    )
                self._warned = True
                continue
            found.append({"step": batch.step, "since": batch.since, "rollouts": rollouts})
        return found

    def load_state(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Go on from ``state``."""
        for part in state:
            rollouts: Future[list[Rollout]] = Future()
            rollouts.set_result(list(part["rollouts"]))
            batch = Batch(step=part["step"], since=part["since"], rollouts=rollouts)
            self._batches[batch.step] = batch

    def end(self) -> None:
        """Wait for threads whose generator has been closed; one that hangs is left behind."""
        for thread in self._threads:
            thread.join(PATIENCE)
            if thread.is_alive():
                logger.warning(
                    "%s still samples %.0f s after it was closed; it is left behind",
                    *(self._run.label("generator"), PATIENCE),
                )

    def _begin(self, first: int, last: int) -> None:
        """Start to sample these steps, but for those that have been started."""
        settings = self._run.settings
        last = min(last, settings.steps - 1)
        wanted = [n for n in range(first, last + 1) if n not in self._batches]
        if not wanted:
            return
        # Prompts are drawn and encoded here: neither is safe in two threads at once.
        asked = [(n, training_request(self._run, n, places(self._run))) for n in wanted]
        requests = [(self._batch(n), request) for n, request in asked]
        if settings.ahead_in_flight:
            for batch, request in requests:
                self._start([(batch, request)])
        else:
            # One after the other, so that the step that is waited for comes first.
            self._start(requests)

    def _take(self, step: int) -> list[Rollout]:
        """The rollouts of a step, waited for.

        Raises:
            Exception: what went wrong where they were sampled.
            SyncError: they come from weights that the generator cannot have had.
        """
        run = self._run
        batch = self._batches.pop(step)
        with run.metrics.timed("sample"):
            rollouts = batch.rollouts.result()
        self._taken = batch
        require_version(run, rollouts, since=batch.since)
        observe_sampled(run.metrics, rollouts)
        run.metrics.maximum("time/sample/ahead", batch.seconds)
        behind = [
            float(run.policy.version - span.policy_version)
            for rollout in rollouts
            for span in rollout.spans
            if span.policy_version is not None
            for _ in span.token_ids
        ]
        run.metrics.mean("sampling/staleness/mean", behind)
        run.metrics.maximum("sampling/staleness/max", max(behind, default=0.0))
        return rollouts

    def _batch(self, step: int) -> Batch:
        batch = Batch(step=step, since=self._run.policy.version, rollouts=Future())
        self._batches[step] = batch
        return batch

    def _start(self, requests: Sequence[tuple[Batch, RolloutRequest]]) -> None:
        # A daemon: one that hangs must not keep a run that failed from ending.
        name = f"grpo-ahead-{requests[0][0].step}"
        thread = threading.Thread(target=self._sample, args=(requests,), name=name, daemon=True)
        self._threads = [t for t in self._threads if t.is_alive()] + [thread]
        thread.start()

    def _sample(self, requests: Sequence[tuple[Batch, RolloutRequest]]) -> None:
        run = self._run
        for batch, request in requests:
            started = perf_counter()
            try:
                rollouts = collect(run, request, partial(run.scorer.submit, batch.step))
            except BaseException as error:
                # Raised where they are waited for.
                batch.rollouts.set_exception(error)
            else:
                batch.seconds = perf_counter() - started
                batch.rollouts.set_result(rollouts)
