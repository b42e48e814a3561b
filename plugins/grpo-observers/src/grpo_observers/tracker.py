"""What the observers of all tracking services do alike; a service is a `Backend`."""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from grpo_core import hookimpl
from grpo_core.errors import ConfigError, GRPOError
from grpo_core.secrets import without_secrets
from grpo_observers.samples import Table, notice_table, sample_table
from grpo_observers.worker import Worker

if TYPE_CHECKING:
    from grpo_core.protocols import BuildContext
    from grpo_core.types import (
        Evaluated,
        Metrics,
        Notice,
        RolloutsScored,
        RunEnd,
        RunStart,
        StepEnd,
    )
    from grpo_observers.config import TrackerConfig

logger = logging.getLogger(__name__)

LONGEST_LOCAL = 60.0
"""Seconds that a local record may take to be opened or closed: MLflow makes its database in 4 to
20 on two busy cores."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Opening:
    """What a service is told at the start. Nothing in it looks like a credential."""

    run_dir: Path
    name: str
    facts: Mapping[str, Any]
    """``config``, ``derived`` and ``components``, as plain data."""
    resumed: Mapping[str, Any] | None
    """The ``state`` of the run that goes on, as ``Opened`` had it; ``None`` for a new one."""
    offline: bool
    """Record on this machine and reach for no network."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """Example: ``Opened(where="https://wandb.ai/me/p/runs/x1", state={"id": "x1"})``."""

    where: str
    """For people: an address, or how to look at or upload what is recorded here."""
    state: Mapping[str, Any]
    """What finds the run again; kept in checkpoints."""


class Backend(Protocol):
    """One session with a service. All methods are called from one thread, and may raise."""

    def open(self, opening: Opening) -> Opened: ...

    def metrics(self, step: int, metrics: Metrics) -> None:
        """``step`` counts steps done: the x axis."""

    def table(self, step: int, table: Table) -> None: ...

    def close(self, end: RunEnd) -> None: ...


class Tracker:
    """Sends config, metrics, notices and samples to a service, from a thread of its own.

    The run waits for the service at its start and its end only, ``timeout`` seconds at most each
    (for a record on this machine a minute).
    A service that cannot be reached makes the run record offline; whatever else fails is counted
    and told. Neither stops the training.
    """

    library: ClassVar[str]
    """The module that the service is spoken to with."""
    extra: ClassVar[str]
    """``pip install grpo-core[extra]`` brings it."""

    def __init__(self, config: TrackerConfig, context: BuildContext | None) -> None:
        """Raises ``ConfigError`` when the library is not installed and the mode needs it."""
        self._config = config
        self._label = f"observer {self.extra!r}"
        self._patience = config.timeout
        self._worker: Worker | None = None
        self._backend: Backend | None = None
        self._state: Mapping[str, Any] | None = None
        if config.mode != "disabled" and not _installed(self.library):
            raise ConfigError(
                f"{self._label} needs the package {self.library!r}: "
                f"pip install grpo-core[{self.extra}] (or mode: disabled)"
            )

    def backend(self) -> Backend:
        """A new one, not yet opened."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """What finds the run again."""
        return {"run": None if self._state is None else dict(self._state)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on in the run that ``state_dict`` named."""
        self._state = state["run"]

    @hookimpl
    def grpo_run_start(self, event: RunStart) -> None:
        if self._config.mode == "disabled":
            return
        facts = {
            "config": event.config,
            "derived": event.derived,
            "components": _manifest(event.run_dir),
        }
        opening = Opening(
            run_dir=event.run_dir.resolve(),
            name=self._config.run_name or event.run_dir.resolve().name,
            facts=json.loads(json.dumps(without_secrets(facts), default=str)),
            resumed=self._state,
            offline=self._config.mode == "offline",
        )
        opened = self._open(opening)
        if opened is not None:
            self._state = opened.state
            print(f"{self.extra}: {without_secrets(opened.where)}", flush=True)
        self._notices(event.first_step, event.notices)

    @hookimpl
    def grpo_evaluated(self, event: Evaluated) -> None:
        self._metrics(event.step, event.metrics)
        name = f"samples/eval/{event.label}"
        self._samples(name, event.step, event.rollouts_B, event.scored, None)

    @hookimpl
    def grpo_rollouts_scored(self, event: RolloutsScored) -> None:
        if self._config.every and event.step % self._config.every == 0:
            rollouts_B, advantages_B = event.rollouts_B, event.advantages_B
            self._samples("samples/train", event.step + 1, rollouts_B, event.scored, advantages_B)

    @hookimpl
    def grpo_step_end(self, event: StepEnd) -> None:
        self._metrics(event.step + 1, event.metrics)
        self._notices(event.step + 1, event.notices)

    @hookimpl
    def grpo_run_end(self, event: RunEnd) -> None:
        worker, backend, patience = self._worker, self._backend, self._patience
        self._worker = self._backend = None
        if worker is None or backend is None:
            return
        worker.send(lambda: backend.close(event))
        if not worker.stop(patience):
            logger.warning(
                "%s: the service did not take everything within %g s; %d records were still "
                "waiting. Every metric is in the run folder too",
                self._label,
                patience,
                worker.waiting,
            )
        if worker.failed:
            logger.warning(
                "%s: %d records are lost; the first because of: %s. Every metric is in the run "
                "folder too",
                self._label,
                worker.failed,
                worker.error,
            )

    def _open(self, opening: Opening) -> Opened | None:
        worker, backend = Worker(self._label), self.backend()
        if opening.offline:
            # Nobody else is waited for; a busy disk must not cost the record.
            self._patience = max(self._config.timeout, LONGEST_LOCAL)
        try:
            answer = worker.ask(lambda: backend.open(opening))
            opened: Opened = answer.result(self._patience)
        except GRPOError:
            raise
        except (Exception, SystemExit) as error:
            reason = f"{type(error).__name__}: {error}"
            if isinstance(error, TimeoutError) and not str(error):
                reason = f"no answer within {self._patience:g} s"
            # A thread that hangs in a library is left behind; what it may still do is not used.
            worker.stop(0)
            if opening.offline:
                logger.warning("%s is off: %s; the run goes on", self._label, reason)
                return None
            logger.warning("%s records on this machine only: %s", self._label, reason)
            return self._open(_offline(opening))
        self._worker, self._backend = worker, backend
        return opened

    def _metrics(self, step: int, metrics: Metrics) -> None:
        worker, backend = self._worker, self._backend
        if worker is not None and backend is not None:
            values = {name: float(value) for name, value in metrics.items()}
            worker.send(lambda: backend.metrics(step, values))

    def _samples(
        self,
        name: str,
        step: int,
        rollouts_B: Sequence[Any],
        scored: Any,
        advantages_B: Sequence[float] | None,
    ) -> None:
        limit, characters = self._config.samples, self._config.characters
        if self._worker is None or not limit or not rollouts_B:
            return
        # Rows now, not in the thread: whole rollouts would stay in memory with all their tokens.
        table = sample_table(
            name, step, rollouts_B, scored, advantages_B, rows=limit, characters=characters
        )
        self._table(step, table)

    def _notices(self, step: int, notices: Sequence[Notice]) -> None:
        if notices:
            self._table(step, notice_table(step, notices))

    def _table(self, step: int, table: Table) -> None:
        worker, backend = self._worker, self._backend
        if worker is not None and backend is not None:
            worker.send(lambda: backend.table(step, table))


def _offline(opening: Opening) -> Opening:
    return Opening(
        run_dir=opening.run_dir,
        name=opening.name,
        facts=opening.facts,
        resumed=opening.resumed,
        offline=True,
    )


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # None in sys.modules
        return False


def _manifest(run_dir: Path) -> Any:
    path = run_dir / "components.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
