"""When checkpoints are written, which are kept, and which one a run goes on from."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from grpo_core.errors import CheckpointError, ConfigError, DamagedCheckpointError
from grpo_core.trainer.checkpoints.changes import differences, identity, rounding
from grpo_core.trainer.checkpoints.folder import CheckpointFolder
from grpo_core.trainer.checkpoints.packing import pack, prompts_named, unpack
from grpo_core.trainer.checkpoints.state import (
    StepStart,
    common_state,
    find_prompts,
    has_own_state,
    load_common,
    load_own,
    own_state,
    seed_rng,
)
from grpo_core.types import CheckpointSaved

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from grpo_core.settings import CheckpointSettings, KeepBest
    from grpo_core.trainer.run import Run
    from grpo_core.trainer.session import Session

logger = logging.getLogger(__name__)

FOLDER = "checkpoints"
NEWEST = "newest"
MAX_FAILED = 3
"""Failed writes in a row before the run stops: a disk that fills for a moment is no reason to."""


class Checkpoints:
    """The checkpoints of one run; every rank has one, and the main one writes."""

    def __init__(self, run: Run, session: Session, settings: CheckpointSettings | None) -> None:
        self._run = run
        self._session = session
        self._settings = settings
        self._folder = CheckpointFolder(run.output / FOLDER)
        self._written_at = monotonic()
        self._newest: int | None = None
        self._failed = 0
        self._start: StepStart | None = None
        self._identity: Mapping[str, Any] = {}

    # -- going on -----------------------------------------------------------------------------

    def resume(self, wanted: str, *, accept_changes: bool) -> None:
        """Go on from a checkpoint: ``newest``, or one by its name or path. Without any the run
        begins at its beginning, which a killed run that had none does too.

        Raises:
            CheckpointError: none is whole, there is none of that name, or it is another run's
                and ``accept_changes`` is false; the last says every difference.
        """
        run = self._run
        found: list[tuple[int | None, str]] = [(None, "")]
        if run.policy.is_main:
            # Told to all as a result: a rank that stops alone leaves the others waiting.
            try:
                found = [(self._choose(wanted, accept_changes=accept_changes), "")]
            except (CheckpointError, ConfigError) as error:
                found = [(None, str(error))]
        else:
            found = []
        step, problem = run.policy.gather(found)[0]
        if problem:
            raise CheckpointError(problem)
        if step is None:
            return logger.warning("%s holds no checkpoint: starting at step 0", self._folder.path)
        self._load(step)
        if run.policy.is_main:
            for later in self._folder.steps():
                if later > step:
                    self._folder.set_aside(later)
        self._newest = step
        return None

    def _choose(self, wanted: str, *, accept_changes: bool) -> int | None:
        steps = self._folder.steps()
        if wanted != NEWEST:
            steps = [self._named(wanted, steps)]
        for step in reversed(steps):
            try:
                then = self._folder.verify(step)
            except DamagedCheckpointError as error:
                logger.warning("%s is damaged and left out: %s", self._folder.at(step), error)
                continue
            self._compare(step, then, accept_changes=accept_changes)
            return step
        if steps:
            raise CheckpointError(
                f"no checkpoint in {self._folder.path} is whole (see the warnings); restore one "
                "from a copy, or start again with another --output"
            )
        return None

    def _named(self, wanted: str, steps: list[int]) -> int:
        for step in steps:
            path = self._folder.at(step)
            if wanted == path.name or Path(wanted).resolve() == path.resolve():
                return step
        names = ", ".join(self._folder.at(step).name for step in steps) or "none"
        raise CheckpointError(
            f"there is no checkpoint {wanted!r} in {self._folder.path}; there: {names}"
        )

    def _compare(self, step: int, then: Mapping[str, Any], *, accept_changes: bool) -> None:
        now = self._identity
        differing = differences(then, now)
        said = (
            f"{self._folder.at(step)} was written by another run than this would be:\n"
            + "".join(f"  {line}\n" for line in differing)
        )
        if differing and not accept_changes:
            raise CheckpointError(
                f"{said}To go on all the same add --resume-changed; to go on as before take "
                f"{self._run.output / 'config.yaml'}"
            )
        if differing:
            logger.warning("%sgoing on all the same, as asked", said)
        for line in rounding(then, now):
            logger.warning("the same bits as without a stop cannot be promised: %s", line)

    def _load(self, step: int) -> None:
        run = self._run
        packed, tensors = self._folder.read(step)
        prompts = find_prompts(run, prompts_named(packed["ranks"]))
        state = unpack(packed, tensors, prompts.__getitem__)
        load_common(run, state["common"])
        self._session.load_state_dict(state["session"])
        if len(state["ranks"]) == run.policy.ranks:
            return load_own(run, state["ranks"][run.policy.rank])
        # Only reached when the change was accepted.
        return logger.warning(
            "%d processes wrote the checkpoint: replay buffers and the state of components, which "
            "each has for itself, begin anew",
            len(state["ranks"]),
        )

    # -- writing ------------------------------------------------------------------------------

    def begin(self) -> None:
        """Before anything is drawn: seed, and refuse what could not be kept.

        Raises:
            ConfigError: the policy is sharded, or a component's state is none that can be written.
        """
        run = self._run
        seed_rng(run.settings.seed, run.policy.rank)
        if run.policy.is_main:
            self._identity = identity(run)
        if self._settings is None:
            return
        run.policy.state_dict()
        try:
            pack(own_state(run, StepStart.of(run), 0)["components"], {}, "state")
        except TypeError as error:
            raise ConfigError(f"the state of a component cannot be written: {error}") from error

    def step_begins(self) -> None:
        if self._settings is not None:
            self._start = StepStart.of(self._run)

    def step_done(self) -> bool:
        """Write if it is time; whether there is a new one.

        Raises:
            CheckpointError: it has failed several times in a row.
        """
        self._start = None
        if not self._is_due():
            return False
        self._run.ahead.rest()
        return self._write(StepStart.of(self._run), final=False)

    def run_ends(self, error: BaseException | None) -> None:
        """Write the last one, if what is there now is the state between two steps.

        After an error in a step it is, until the optimizer has moved the weights, if nothing that
        samples or scores has state of its own. With several processes it is not tried: one of
        them has failed, and would be waited for.
        """
        if self._settings is None or self._session.steps_done == self._newest:
            return
        run, start = self._run, self._start
        if error is not None:
            if run.policy.ranks > 1 or not self._session.steps_done:
                return
            if start is not None:
                moved = run.policy.optimizer_steps != start.optimizer_steps
                if moved or has_own_state(run):
                    return
        else:
            run.ahead.rest()
        self._write(start or StepStart.of(run), final=True)

    def _is_due(self) -> bool:
        settings, done = self._settings, self._session.steps_done
        if settings is None:
            return False
        minutes = (monotonic() - self._written_at) / 60
        late = bool(settings.every_minutes) and minutes >= settings.every_minutes
        # Clocks differ between ranks.
        late = self._run.policy.gather([late])[0]
        return (
            late
            or self._epochs_are_over(done)
            or bool(settings.every_steps and done % settings.every_steps == 0)
        )

    def _epochs_are_over(self, done: int) -> bool:
        assert self._settings is not None
        if not self._settings.every_epochs:
            return False
        per_step = self._run.settings.prompts_per_step / len(self._run.prompts)
        before, now = (n * per_step / self._settings.every_epochs for n in (done - 1, done))
        return math.floor(now) > math.floor(before)

    def _write(self, start: StepStart, *, final: bool) -> bool:
        run = self._run
        ranks = run.policy.gather([own_state(run, start, self._session.steps_done)])
        # What came of it is told to all: they must agree on whether to try again.
        problem = run.policy.gather([self._store(ranks) if run.policy.is_main else ""])[0]
        self._written_at = monotonic()
        if not problem:
            self._newest, self._failed = self._session.steps_done, 0
            return True
        self._failed += 1
        if final or self._failed >= MAX_FAILED:
            raise CheckpointError(problem)
        if run.policy.is_main:
            logger.warning("%s; the run goes on, and the checkpoints before are kept", problem)
        return False

    def _store(self, ranks: list[Any]) -> str:
        """Write, then delete what is no longer kept; returns what went wrong."""
        run, session = self._run, self._session
        whole = {"common": common_state(run), "session": session.state_dict(), "ranks": ranks}
        about = {**self._identity, "metrics": _finite(session.latest_metrics())}
        tensors: dict[str, Tensor] = {}
        try:
            state = pack(whole, tensors, "state")
            path = self._folder.write(session.steps_done, state, tensors, about)
        except (OSError, TypeError) as error:
            return f"the checkpoint of step {session.steps_done} could not be written: {error}"
        self._folder.prune(self._kept())
        saved = CheckpointSaved(step=session.steps_done, path=path, kind="checkpoint")
        run.lifecycle.checkpoint_saved(saved)
        return ""

    def _kept(self) -> set[int]:
        assert self._settings is not None
        steps = self._folder.steps()
        kept = set(steps[-self._settings.keep_last :])
        best = self._settings.keep_best
        return kept if best is None else kept | self._best(steps, best)

    def _best(self, steps: list[int], best: KeepBest) -> set[int]:
        """The first of the steps with the best value; those without one are not candidates."""
        values = {}
        for step in steps:
            try:
                value = self._folder.index(step)["metrics"].get(best.metric)
            except CheckpointError as error:
                logger.warning("%s is left out: %s", self._folder.at(step), error)
                continue
            if value is not None:
                values[step] = value if best.mode == "max" else -value
        if not values:
            logger.warning("no checkpoint has a value of keep_best.metric %r", best.metric)
            return set()
        return {max(values, key=lambda step: values[step])}


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if math.isfinite(value)}
