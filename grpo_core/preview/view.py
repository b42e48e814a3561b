"""A preview in the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from grpo_core.builtin.text import shorten, visible

if TYPE_CHECKING:
    from grpo_core.preview.results import Bar, Distribution, Preview, ProviderResult

WIDTH = 24
EIGHTHS = " ▏▎▍▌▋▊▉█"
MOST_DIFFERENCES = 5
CHARACTERS = 400


def show(preview: Preview, console: Console) -> None:
    """Print everything; ``Text`` throughout, so that no completion is read as markup."""
    console.print(_summary(preview))
    for provider in preview.providers:
        console.print()
        console.print(_provider(provider))
    for number, example in enumerate(preview.examples, 1):
        rewards = ", ".join(f"{name} {value}" for name, value in example.rewards.items())
        console.print()
        console.rule(Text(visible(f"example {number}: {example.prompt_id}"), "bold"), align="left")
        console.print(Text(visible(shorten(example.prompt, CHARACTERS)), "dim"))
        console.print(Text(visible(shorten(example.completion, CHARACTERS))))
        cut = ", cut off" if example.truncated else ""
        console.print(Text(visible(f"{rewards}  ({example.tokens} {preview.unit}{cut})"), "cyan"))


def _summary(preview: Preview) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_row("rollouts", Text(f"{preview.rollouts} of {preview.prompts} prompts"))
    if preview.rollout_errors:
        grid.add_row("failed", Text(f"{preview.rollout_errors} rollouts themselves", "red"))
    grid.add_row("length", Text(f"{_numbers(preview.lengths)} {preview.unit}"))
    grid.add_row("truncated", Text(f"{preview.truncated:.1%}"))
    grid.add_row("total reward", Text(_numbers(preview.totals)))
    share = preview.groups_without_signal / preview.groups if preview.groups else 0.0
    text = f"{preview.groups_without_signal} of {preview.groups} groups ({share:.0%})"
    if not preview.groups:
        text = "unknown: no group has two completions with a reward"
    grid.add_row("without signal", Text(text, "red" if share == 1 and preview.groups else ""))
    return grid


def _provider(found: ProviderResult) -> RenderableType:
    state = Text(" broken", "bold red") if found.broken else Text(" ok", "green")
    title = Text(visible(found.name), "bold") + state + Text(f"  weight {found.weight:g}", "dim")
    table = Table(box=box.SIMPLE, show_header=False, padding=(0, 1), pad_edge=False)
    table.add_column(justify="right")
    table.add_column(min_width=WIDTH)
    table.add_column(justify="right")
    for bar in found.values.bars:
        share = bar.count / found.values.count
        table.add_row(_label(bar), Text(_drawn(share), "cyan"), f"{share:.1%}  {bar.count}")
    parts: list[RenderableType] = [title]
    parts += [table] if found.values.bars else []
    return Group(*parts, *(Text(visible(line), style) for line, style in _lines(found)))


def _lines(found: ProviderResult) -> Iterator[tuple[str, str]]:
    asked = max(1, found.asked)
    yield f"  {_numbers(found.values)}", ""
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(found.failed.items()))
    yield (
        f"  values {found.values.count / asked:.1%}, abstained {found.abstained / asked:.1%}, "
        f"failed {found.failures / asked:.1%}" + (f" ({kinds})" if kinds else ""),
        "red" if found.failures else "",
    )
    calls = f"{found.latency.calls} call" + ("s" if found.latency.calls != 1 else "")
    yield (
        f"  latency p50 {_seconds(found.latency.p50)}, p95 {_seconds(found.latency.p95)}, total "
        f"{_seconds(found.latency.total)} in {calls}",
        "",
    )
    if found.groups:
        yield f"  without signal: {found.groups_without_signal} of {found.groups} groups", ""
    if found.first_failure is not None:
        yield f"  first failure: {found.first_failure}", "red"
    for line in (found.traceback or "").rstrip().splitlines():
        yield f"    {line}", "dim"
    if found.differences:
        yield (
            f"  not deterministic: {len(found.differences)} rollouts differ when asked again",
            ("yellow"),
        )
    for d in found.differences[:MOST_DIFFERENCES]:
        yield f"    {d.prompt}, sample {d.sample}: {d.first}, then {d.second}", "yellow"


def _numbers(found: Distribution) -> str:
    if found.mean is None:
        return "no values"
    return f"mean {found.mean:.4g}, std {found.std:.4g}, min {found.min:.4g}, max {found.max:.4g}"


def _label(bar: Bar) -> str:
    return f"{bar.low:.4g}" if bar.low == bar.high else f"{bar.low:.4g} to {bar.high:.4g}"


def _drawn(share: float) -> str:
    # What is there is seen: the thinnest bar is an eighth of a column.
    eighths = max(round(share * WIDTH * 8), 1 if share else 0)
    return "█" * (eighths // 8) + EIGHTHS[eighths % 8].strip()


def _seconds(value: float) -> str:
    return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s"
