"""The `console` observer: what a person sees of a run."""

from __future__ import annotations

import threading
import time
from typing import IO, TYPE_CHECKING

from rich.console import Console as Terminal
from rich.text import Text

from grpo_core.builtin.config import ConsoleConfig
from grpo_core.builtin.console_live import LiveRegion
from grpo_core.builtin.console_views import (
    Clock,
    comparison,
    evaluation_line,
    progress,
    results,
    samples,
    step_line,
)
from grpo_core.builtin.history import History, counts, duration
from grpo_core.builtin.text import visible
from grpo_core.hookspecs import hookimpl

if TYPE_CHECKING:
    from rich.console import RenderableType

    from grpo_core.protocols import BuildContext
    from grpo_core.types import (
        CheckpointSaved,
        Evaluated,
        RolloutsScored,
        RunEnd,
        RunStart,
        StepEnd,
        WeightsSynced,
    )


class Console:
    """Live progress in a terminal; elsewhere one line per step, flushed, without control codes.

    Nothing from models or data reaches the terminal unescaped, and nothing is read as markup.
    """

    def __init__(
        self,
        config: ConsoleConfig | None = None,
        context: BuildContext | None = None,
        *,
        terminal: Terminal | None = None,
    ) -> None:
        """``terminal`` is where to write; standard output when not given."""
        config = config or ConsoleConfig()
        self._terminal = terminal or Terminal(highlight=False)
        _never_fail(self._terminal.file)
        able = self._terminal.file.isatty() and not self._terminal.is_dumb_terminal
        self._wants_live = config.progress == "live" or (config.progress == "auto" and able)
        self._live: LiveRegion | None = None
        self._lock = threading.RLock()
        self._history = History(samples=config.samples)
        self._clock = Clock()

    @hookimpl
    def grpo_run_start(self, event: RunStart) -> None:
        self._history.start(event)
        self._clock.start()
        self._print(Text.assemble(("run ", "dim"), (visible(str(event.run_dir)), "bold")))
        after = f", going on after {event.first_step}" if event.first_step else ""
        facts = [f"{event.steps} steps{after}", *counts(event.derived)]
        self._print(Text(visible(" · ".join(facts)), "dim"))
        for notice in event.notices:
            self._print(Text(visible(f"! {notice.code}: {notice.text}"), "yellow"))

    @hookimpl
    def grpo_weights_synced(self, event: WeightsSynced) -> None:
        # The display starts here and not at the run's start: from the first synchronisation on,
        # the run's end is told of every failure, so that the terminal is always given back.
        self._show()
        self._clock.phase = "sampling"

    @hookimpl
    def grpo_evaluated(self, event: Evaluated) -> None:
        self._show()
        with self._lock:
            self._history.evaluated(event)
            self._clock.phase = ""
        first = self._history.first
        if first is not None and (first.step, first.label) == (event.step, event.label):
            self._print(samples(first))
        self._print(evaluation_line(event))

    @hookimpl
    def grpo_rollouts_scored(self, event: RolloutsScored) -> None:
        self._clock.phase = "updating"

    @hookimpl
    def grpo_step_end(self, event: StepEnd) -> None:
        self._show()
        with self._lock:
            self._history.step(event)
            self._clock.step(event.metrics.get("time/step"))
            self._clock.phase = ""
        if self._live is None:
            self._print(step_line(self._history, self._clock))
        for notice in event.notices:
            text = f"! step {event.step + 1}, {notice.code}: {notice.text}"
            self._print(Text(visible(text), "yellow"))

    @hookimpl
    def grpo_checkpoint_saved(self, event: CheckpointSaved) -> None:
        if event.kind == "checkpoint":
            self._print(Text(visible(f"step {event.step}: saved {event.path}"), "dim"))

    @hookimpl
    def grpo_run_end(self, event: RunEnd) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        took = duration(time.monotonic() - self._clock.started)
        style = {"finished": "green", "interrupted": "yellow", "failed": "red"}[event.status]
        end = Text.assemble((event.status, f"bold {style}"))
        end.append(f" after {event.steps_done} of {self._history.steps} steps, {took}")
        if event.error is not None:
            end.append(visible(f"\n{event.error}"), style)
        self._print(end)
        self._print(comparison(self._history))
        if self._history.last is not None:
            self._print(samples(self._history.first, self._history.last))
        self._print(results(event))

    def _show(self) -> None:
        if self._wants_live and self._live is None:
            self._live = LiveRegion(
                self._terminal, lambda: progress(self._history, self._clock), self._lock
            )
            self._live.start()

    def _print(self, what: RenderableType | None) -> None:
        if what is None:
            return
        # Folded lines are for people; a log keeps one step on one line.
        one_line = not self._wants_live and isinstance(what, Text)
        with self._lock:
            self._terminal.print(what, soft_wrap=one_line)


def _never_fail(stream: IO[str]) -> None:
    """A character that the terminal's encoding lacks is replaced: it must not end a run."""
    encoding = (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "")
    if not encoding.startswith("utf") and hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="replace")
