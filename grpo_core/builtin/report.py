"""The `report` observer: `report.html`, a run on one page that can be mailed."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

from grpo_core.builtin.history import History, duration
from grpo_core.builtin.jsonl import FILE_NAME as METRICS
from grpo_core.builtin.jsonl import read_metrics
from grpo_core.builtin.report_page import page
from grpo_core.hookspecs import hookimpl

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from grpo_core.types import Evaluated, RunEnd, RunStart, StepEnd

FILE_NAME = "report.html"
SAMPLES = 8
SECONDS_BETWEEN = 30.0
"""Writing takes some milliseconds: seldom enough to cost nothing, often enough to look at."""


class Report:
    """Writes ``report.html`` at the start, at evaluations, every half minute, and at the end."""

    def __init__(self) -> None:
        self._history = History(samples=SAMPLES)
        self._start: RunStart | None = None
        self._components: Sequence[Mapping[str, Any]] = ()
        self._started = self._written = time.monotonic()

    @hookimpl
    def grpo_run_start(self, event: RunStart) -> None:
        self._start = event
        self._started = self._written = time.monotonic()
        self._history.start(event)
        self._components = _manifest(event)
        # A resumed run knows its earlier steps only from what was written down.
        for record in read_metrics(event.run_dir / METRICS) if event.first_step else ():
            done = record["step"] + (record.get("event") == "step")
            if done <= event.first_step and record.get("event") in ("step", "evaluation"):
                numbers = {k: v for k, v in record.items() if "/" in k}
                self._history.add(done, numbers)
        self._write("running")

    @hookimpl
    def grpo_evaluated(self, event: Evaluated) -> None:
        self._history.evaluated(event)
        self._write("running")

    @hookimpl
    def grpo_step_end(self, event: StepEnd) -> None:
        self._history.step(event)
        if time.monotonic() - self._written > SECONDS_BETWEEN:
            self._write("running")

    @hookimpl
    def grpo_run_end(self, event: RunEnd) -> None:
        self._write(event.status if event.error is None else f"{event.status}: {event.error}")

    def _write(self, state: str) -> None:
        start = self._start
        if start is None:
            return
        took = duration(time.monotonic() - self._started)
        text = page(
            self._history,
            title=start.run_dir.resolve().name,
            state=f"{self._history.done} of {start.steps} steps in {took}; {state}",
            config=start.config,
            derived=start.derived,
            components=self._components,
        )
        _replace(start.run_dir / FILE_NAME, text)
        self._written = time.monotonic()


def _manifest(event: RunStart) -> Sequence[Mapping[str, Any]]:
    path = event.run_dir / "components.json"
    if not path.is_file():
        return ()
    found: Sequence[Mapping[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _replace(path: Path, text: str) -> None:
    # A browser that reloads in the middle of a write must not see half a page.
    aside = path.with_suffix(".tmp")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)
