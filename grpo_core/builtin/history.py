"""What an observer has seen of a run so far, in the form that people are shown."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from grpo_core.builtin.text import prompt_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from grpo_core.types import Evaluated, Notice, RunStart, StepEnd

Curve = list[tuple[int, float]]
"""(steps done, value) pairs; values are finite."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """Some completions of one evaluation, by the id of their prompt."""

    step: int
    label: str
    prompts: Mapping[str, str]
    completions: Mapping[str, str]


class History:
    """Collects events. Steps are counted as steps done: the first step ends at 1."""

    def __init__(self, *, samples: int) -> None:
        """Keep ``samples`` completions of the first and of the latest evaluation."""
        self._samples = samples
        self.steps = 0
        self.done = 0
        self.curves: dict[str, Curve] = {}
        """Every metric of steps and evaluations, by name."""
        self.notices: list[tuple[int, Notice]] = []
        self.first: Snapshot | None = None
        self.last: Snapshot | None = None

    def start(self, event: RunStart) -> None:
        self.steps = event.steps
        self.done = event.first_step
        self.notices += [(event.first_step, notice) for notice in event.notices]

    def evaluated(self, event: Evaluated) -> None:
        self.add(event.step, event.metrics)
        if self.first is None:
            self.first = self._snapshot(event)
        elif event.label == self.first.label and event.step > self.first.step:
            self.last = self._snapshot(event)

    def step(self, event: StepEnd) -> None:
        self.done = event.step + 1
        self.add(self.done, event.metrics)
        self.notices += [(event.step, notice) for notice in event.notices]

    def add(self, done: int, metrics: Mapping[str, float | None]) -> None:
        """Take over metrics; what is not finite has no place on a curve."""
        for name, value in metrics.items():
            if value is not None and math.isfinite(value):
                self.curves.setdefault(name, []).append((done, float(value)))

    def latest(self, name: str) -> float:
        """NaN when there is none."""
        curve = self.curves.get(name)
        return curve[-1][1] if curve else math.nan

    def evaluations(self) -> list[str]:
        """``eval/<label>/<provider>`` of every reward provider, then its measures over several
        samples, in a lasting order."""
        names = [
            n for n in self.curves if n.startswith("eval/") and (n.count("/") == 2 or "@" in n)
        ]
        return sorted(names, key=lambda name: (name.split("/")[2:], "greedy" in name))

    def _snapshot(self, event: Evaluated) -> Snapshot:
        # Texts only: whole rollouts of every evaluation would stay in memory with all tokens.
        chosen = {r.prompt.id: r for r in event.rollouts_B[: self._samples]}
        if self.first is not None:
            same = {r.prompt.id: r for r in event.rollouts_B if r.prompt.id in self.first.prompts}
            chosen = same or chosen
        return Snapshot(
            step=event.step,
            label=event.label,
            prompts={key: prompt_text(r.prompt) for key, r in chosen.items()},
            completions={key: r.text for key, r in chosen.items()},
        )


def spoken(name: str) -> str:
    """``eval/sampled/exact-answer/pass@8`` -> ``exact-answer pass@8, sampled``."""
    _, label, measure = name.split("/", 2)
    return f"{measure.replace('/', ' ')}, {label}"


def number(value: float) -> str:
    """About three significant digits: 0.213, 26.4, 1,820, 1.2e-06."""
    if not math.isfinite(value):
        return "-"
    if value == 0 or 1e-3 <= abs(value) < 1:
        return f"{value:.3f}"
    if abs(value) < 1e-3:
        return f"{value:.1e}"
    if abs(value) < 1000:
        return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"
    return f"{value:,.0f}"


def duration(seconds: float) -> str:
    """``1:05`` or ``2:03:09``."""
    if not math.isfinite(seconds):
        return "-"
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def counts(derived: Mapping[str, object]) -> list[str]:
    """``{"rollouts_per_step": 128}`` -> ``["rollouts per step 128"]``."""
    return [f"{name.replace('_', ' ')} {_plain(value)}" for name, value in derived.items()]


def _plain(value: object) -> str:
    if isinstance(value, float):
        return number(value)
    return f"{value:,}" if isinstance(value, int) else str(value)
