"""The `jsonl` observer: `metrics.jsonl`, the record of a run that everything else can read.

One JSON object per line::

    {"event": "step", "step": 0, "wall_time": 1767225600.0, "policy_version": 1, "reward/mean": 0.4}
    {"event": "evaluation", "step": 0, "wall_time": ..., "label": "greedy", "eval/greedy/x": 0.2}
    {"event": "notice", "step": 7, "wall_time": ..., "code": "constant-reward", "text": "..."}

``step`` counts from 0 for steps and their notices, those of the start being with the first step; of
an evaluation it is the steps done before.
``wall_time`` is in seconds since 1970. A number that is NaN or infinite is ``null``.
"""

from __future__ import annotations

import json
import math
import os
import time
from typing import IO, TYPE_CHECKING, Any

from grpo_core.hookspecs import hookimpl

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from grpo_core.types import Evaluated, Metrics, Notice, RunEnd, RunStart, StepEnd

FILE_NAME = "metrics.jsonl"


class JsonlMetrics:
    """Writes ``metrics.jsonl`` into the run folder, each line flushed as soon as it is known."""

    def __init__(self) -> None:
        self._file: IO[str] | None = None

    @hookimpl
    def grpo_run_start(self, event: RunStart) -> None:
        path = event.run_dir / FILE_NAME
        # A run that was killed after its checkpoint has written steps that come again now: kept,
        # they would stand there twice, with two values each.
        keep_before(path, event.first_step)
        self._file = path.open("a", encoding="utf-8")
        self._write_notices(event.first_step, event.notices)

    @hookimpl
    def grpo_evaluated(self, event: Evaluated) -> None:
        self._write("evaluation", event.step, {"label": event.label, **numbers(event.metrics)})

    @hookimpl
    def grpo_step_end(self, event: StepEnd) -> None:
        known = {"policy_version": event.policy_version, **numbers(event.metrics)}
        self._write("step", event.step, known)
        self._write_notices(event.step, event.notices)

    @hookimpl
    def grpo_run_end(self, event: RunEnd) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write_notices(self, step: int, notices: Sequence[Notice]) -> None:
        for notice in notices:
            self._write("notice", step, {"code": notice.code, "text": notice.text})

    def _write(self, event: str, step: int, values: Mapping[str, Any]) -> None:
        if self._file is None:
            raise RuntimeError(f"{FILE_NAME} is not open: grpo_run_start has not been called")
        record = {"event": event, "step": step, "wall_time": round(time.time(), 3), **values}
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()


def numbers(metrics: Metrics) -> dict[str, float | None]:
    """Metrics as JSON knows them: it has no NaN and no infinity, and most readers refuse them."""
    return {k: float(v) if math.isfinite(v) else None for k, v in metrics.items()}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a ``metrics.jsonl``; a last line torn by a kill is left out."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records


def keep_before(path: Path, first_step: int) -> None:
    """Drop what a run that goes on at ``first_step`` is going to write again."""
    if not path.is_file():
        return
    kept = [r for r in read_metrics(path) if _steps_done(r) <= first_step and first_step > 0]
    # Written aside and renamed, so that a kill at this moment loses nothing.
    aside = path.with_suffix(".tmp")
    with aside.open("w", encoding="utf-8") as handle:
        handle.writelines(json.dumps(record, allow_nan=False) + "\n" for record in kept)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(aside, path)


def _steps_done(record: Mapping[str, Any]) -> int:
    """How far the run was when this was written."""
    step: int = record["step"]
    return step if record.get("event") == "evaluation" else step + 1
