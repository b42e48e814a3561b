"""What the `console` observer draws, from what has been seen of a run."""

from __future__ import annotations

import math
import time
from itertools import pairwise
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from grpo_core.builtin.history import Curve, History, Snapshot, duration, number, spoken
from grpo_core.builtin.text import shorten, visible

if TYPE_CHECKING:
    from grpo_core.types import Evaluated, RunEnd

SAMPLE_CHARACTERS = 360
SPARK_WIDTH = 18
MOST_HELD_OUT = 4
BLOCKS = "▁▂▃▄▅▆▇█"


class Clock:
    """Times of a run, for the time that is left."""

    def __init__(self) -> None:
        self.phase = ""
        self.started = self._last = time.monotonic()
        self._recent: list[float] = []

    def start(self) -> None:
        self.started = self._last = time.monotonic()

    def step(self, seconds: float | None) -> None:
        """A step is done; ``seconds`` leaves out evaluations, which come at other times."""
        now = time.monotonic()
        known = seconds is not None and math.isfinite(seconds)
        self._recent.append(seconds if known and seconds is not None else now - self._last)
        del self._recent[:-20]
        self._last = now

    def left(self, steps: int) -> float:
        """Seconds for so many more steps, by the latest 20; NaN before the first."""
        if not self._recent:
            return math.nan
        return steps * sum(self._recent) / len(self._recent) - (time.monotonic() - self._last)


def progress(history: History, clock: Clock) -> Group:
    """The live region: a bar, then one line per quantity with its curve so far."""
    bar = Table.grid(padding=(0, 1))
    left = clock.left(history.steps - history.done)
    running = history.done < history.steps and math.isfinite(left)
    bar.add_row(
        Text(f"step {history.done}/{history.steps}", "bold"),
        ProgressBar(
            total=max(history.steps, 1), completed=history.done, width=30, complete_style="cyan"
        ),
        Text(f"{duration(left)} left" if running else ""),
        Text(clock.phase, "dim"),
    )
    # All room that a narrow terminal lacks is taken from the remarks, never from the numbers.
    table = Table.grid(padding=(0, 2), expand=True)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(justify="right", no_wrap=True, min_width=7)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(style="dim", no_wrap=True, overflow="ellipsis", ratio=1)
    for name, curve, remark in _quantities(history):
        value = number(curve[-1][1]) if curve else "-"
        table.add_row(visible(name), Text(value, "bold"), sparkline(curve), Text(visible(remark)))
    return Group("", bar, table, "")


def _quantities(history: History) -> list[tuple[str, Curve, str]]:
    """(name, curve, remark) of each line; a metric that is not there leaves its place empty."""

    def remark(*parts: tuple[str, str]) -> str:
        there = [(text, history.latest(name)) for text, name in parts if name in history.curves]
        said = [text.format(number(x) if "{}" in text else x) for text, x in there]
        return ", ".join(said)

    def row(title: str, name: str, *parts: tuple[str, str]) -> tuple[str, Curve, str]:
        return title, history.curves.get(name, []), remark(*parts)

    no_signal = ("{0:.0%} of groups without signal", "group/no_signal")
    held_out = [(n, history.curves[n]) for n in history.evaluations()[:MOST_HELD_OUT]]
    return [
        row("reward", "reward/mean", ("± {}", "reward/std"), no_signal),
        *((spoken(name), curve, _gain(curve)) for name, curve in held_out),
        row("length", "length/mean", ("{0:.0%} cut off", "length/truncated_share")),
        row("entropy", "entropy/mean", ("KL to reference {}", "kl/reference")),
        row("tokens/s", "time/tokens_per_second", ("{} s per step", "time/step")),
    ]


def _gain(curve: Curve) -> str:
    return "held out" if len(curve) == 1 else f"held out, was {number(curve[0][1])}"


def sparkline(curve: Curve) -> str:
    """The curve in a line of text: means over equal parts of it, from lowest to highest."""
    values = [value for _, value in curve]
    if len(values) < 2:
        return ""
    if len(values) > SPARK_WIDTH:
        edges = [len(values) * i // SPARK_WIDTH for i in range(SPARK_WIDTH + 1)]
        values = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(values), max(values)
    if not 0 < high - low < math.inf:
        return BLOCKS[0] * len(values)
    top = len(BLOCKS) - 1
    return "".join(BLOCKS[round((value - low) / (high - low) * top)] for value in values)


def step_line(history: History, clock: Clock) -> Text:
    """One step on one line, for logs."""
    width = len(str(history.steps))
    parts = [f"step {history.done:>{width}}/{history.steps}"]
    for title, name in (
        ("reward", "reward/mean"),
        ("length", "length/mean"),
        ("entropy", "entropy/mean"),
        ("kl", "kl/reference"),
        ("grad", "optim/grad_norm"),
        ("tokens/s", "time/tokens_per_second"),
        ("seconds", "time/step"),
    ):
        if name in history.curves:
            parts.append(f"{title} {number(history.latest(name))}")
    left = clock.left(history.steps - history.done)
    parts.append(f"left {duration(left)}")
    return Text("  ".join(parts))


def evaluation_line(event: Evaluated) -> Text:
    """Held-out rewards of one evaluation."""
    line = Text.assemble((f"held out, {event.label}, {_when(event.step)}:", "dim"))
    for name, value in sorted(event.metrics.items()):
        if name.count("/") == 2 or "@" in name:
            title = name.split("/", 2)[2].replace("/", " ")
            line.append(f"  {visible(title)} ").append(number(value), "bold")
    return line


def _when(step: int) -> str:
    return f"after step {step}" if step else "before training"


def comparison(history: History) -> Table | None:
    """First and latest value of everything measured on held-out prompts."""
    names = [*history.evaluations(), *(n for n in history.curves if n.endswith("/length/mean"))]
    names = [name for name in names if name.startswith("eval/")]
    if not names or all(len(history.curves[name]) < 2 for name in names):
        return None
    table = Table(box=box.SIMPLE_HEAD, header_style="dim", pad_edge=False)
    table.add_column("held out")
    ends = [(history.curves[name][0][0], history.curves[name][-1][0]) for name in names]
    table.add_column(_when(min(first for first, _ in ends)), justify="right")
    table.add_column(_when(max(last for _, last in ends)), justify="right", style="bold")
    for name in names:
        curve = history.curves[name]
        title = spoken(name.replace("/length/mean", "/length in tokens"))
        table.add_row(Text(visible(title)), number(curve[0][1]), number(curve[-1][1]))
    return table


def samples(first: Snapshot | None, last: Snapshot | None = None) -> Table | None:
    """Completions of the same prompts, before and after."""
    if first is None or not first.prompts:
        return None
    table = Table(box=box.SIMPLE_HEAD, header_style="dim", pad_edge=False)
    table.add_column("prompt", ratio=2, overflow="fold", style="dim")
    table.add_column(_when(first.step), ratio=3, overflow="fold")
    if last is not None:
        table.add_column(_when(last.step), ratio=3, overflow="fold")
    for key, prompt in first.prompts.items():
        row = [prompt, first.completions[key]]
        if last is not None:
            row.append(last.completions.get(key, ""))
        table.add_row(*map(_cell, row))
        # Several lines per cell need an empty line between rows to be told apart.
        table.leading = max(table.leading, int(max(map(len, row)) > 40))
    return table


def _cell(text: str) -> Text:
    # Text and not str: a plain string in a cell is markup, and "[/x]" in it would raise.
    return Text(visible(shorten(text, SAMPLE_CHARACTERS)) or "(nothing)")


def results(event: RunEnd) -> Table:
    """Where everything lies."""
    table = Table.grid(padding=(0, 2))
    table.add_row(Text("results", "bold"), Text(visible(str(event.run_dir))))
    for name, path in event.artifacts.items():
        table.add_row(Text(f"  {visible(name)}", "dim"), Text(visible(str(path))))
    # Observers write files of their own, of which the run does not know.
    found = sorted(event.run_dir.iterdir()) if event.run_dir.is_dir() else []
    named = set(event.artifacts.values())
    others = [p.name for p in found if p not in named and not p.name.startswith(".")]
    if others:
        table.add_row(Text("  there too", "dim"), Text(visible("  ".join(others)), "dim"))
    return table
