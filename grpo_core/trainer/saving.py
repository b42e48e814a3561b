"""Savers are asked to save: after each checkpoint, and at the end."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal

from grpo_core.attribution import attributed
from grpo_core.errors import GRPOError
from grpo_core.types import CheckpointSaved, SaveRequest

if TYPE_CHECKING:
    from pathlib import Path

    from grpo_core.protocols import Saver
    from grpo_core.trainer.run import Run
    from grpo_core.trainer.session import Session

logger = logging.getLogger(__name__)

MAX_FAILED = 3
"""Checkpoints in a row at which a saver may fail before the run stops, as with checkpoints
themselves: a disk that fills for a moment is no reason to."""


class Saving:
    """The savers of one run; on every rank, since gathering sharded weights takes them all."""

    def __init__(self, run: Run, session: Session) -> None:
        self._run = run
        self._session = session
        self._failed: dict[int, int] = {}

    def save(self, kind: Literal["checkpoint", "final"]) -> None:
        """Ask each saver in the config's order.

        Raises:
            GRPOError: one failed at the end, or at several checkpoints in a row; the others have
                been asked all the same.
        """
        failures = []
        for position, saver in enumerate(self._run.savers):
            failure = self._ask(saver, kind)
            self._failed[position] = self._failed.get(position, 0) + 1 if failure else 0
            if failure and (kind == "final" or self._failed[position] >= MAX_FAILED):
                failures.append(failure)
            elif failure and self._run.policy.is_main:
                logger.warning("%s; the run goes on", failure)
        if failures:
            raise failures[0]

    def _ask(self, saver: Saver, kind: Literal["checkpoint", "final"]) -> GRPOError | None:
        run = self._run
        path, failure = None, None
        try:
            with attributed(run.label_of("saver", saver), "save"):
                path = saver.save(self._request(kind))
        except GRPOError as error:
            failure = error
        if kind == "checkpoint":
            # Told to all: a rank that stops alone leaves the others waiting in the next step.
            texts = [text for text in run.policy.gather([str(failure or "")]) if text]
            failure = failure or (GRPOError(texts[0]) if texts else None)
        if path is not None and failure is None and run.policy.is_main:
            self._tell(kind, path)
        return failure

    def _tell(self, kind: Literal["checkpoint", "final"], path: Path) -> None:
        if kind == "final":
            self._session.artifacts[path.name] = path
        saved: Literal["model", "final"] = "final" if kind == "final" else "model"
        self._run.lifecycle.checkpoint_saved(
            CheckpointSaved(step=self._session.steps_done, path=path, kind=saved)
        )

    def _request(self, kind: Literal["checkpoint", "final"]) -> SaveRequest:
        run, session = self._run, self._session
        return SaveRequest(
            kind=kind,
            step=session.steps_done,
            run_dir=run.output,
            policy=run.policy,
            config=run.config,
            manifest=run.manifest,
            metrics=session.latest_metrics(),
            history=tuple(session.history),
            evaluations=tuple(session.evaluations),
            results=tuple(session.results),
        )
