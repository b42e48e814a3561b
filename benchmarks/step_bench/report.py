"""The measured tables and plots of docs/explanation/performance.md, from the results."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from step_bench.workloads import SERIES, WORKLOADS

PAGE = Path(__file__).parents[2] / "docs/explanation/performance.md"


def write(results: Path, page: Path = PAGE) -> None:
    """Rewrite what stands between ``<!-- name -->`` and ``<!-- /name -->``, and the plots."""
    from step_bench import plot

    steps = _read(results, [f"step-{name}" for name in WORKLOADS])
    series = _read(results, [f"series-{name}" for name in SERIES])
    text = page.read_text("utf-8")
    for name, lines in (
        ("step", _step_table(steps)),
        ("phases", _phase_table(steps)),
        ("series", _series_table(series)),
        ("machine", _machine(steps)),
    ):
        text = _between(text, name, "\n".join(lines))
    page.write_text(text, "utf-8")
    plot.steps(steps, page.parent / "performance-steps.svg")
    plot.series(series, page.parent / "performance-series.svg")
    print(f"wrote {page} and its plots")


def _read(results: Path, names: list[str]) -> list[dict[str, Any]]:
    paths = [results / f"{name}.json" for name in names]
    return [json.loads(path.read_text("utf-8")) for path in paths if path.is_file()]


def _between(text: str, name: str, new: str) -> str:
    found = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not found.search(text):
        raise ValueError(f"the page has no <!-- {name} --> ... <!-- /{name} -->")
    return found.sub(lambda m: f"{m[1]}{new}\n{m[2]}", text)


def _step_table(steps: list[dict[str, Any]]) -> list[str]:
    head = (
        "workload",
        "TRL, s",
        "here, s",
        "ratio",
        "half silent, s",
        "ratio",
        "floor, s",
        "extra memory, MB",
    )
    rows = []
    for step in steps:
        unit = _unit(step)
        full, half = (step["summary"].get(kind) for kind in ("signal", "half"))
        trl, ours = full["trl"], full["ours"]
        rows.append(
            (
                f"{step['workload']['name']}: {step['workload']['summary']}",
                f"{trl[unit]:.2f}",
                f"{ours[unit]:.2f}",
                f"**{full['ratio']:.1f}**",
                f"{half['ours'][unit]:.2f}" if half else "",
                f"**{half['ratio']:.1f}**" if half else "",
                f"{sum(full['floor'].values()):.2f}",
                f"{_mb(trl['extra_bytes'])} → {_mb(ours['extra_bytes'])}",
            )
        )
    return _table(head, rows)


def _phase_table(steps: list[dict[str, Any]]) -> list[str]:
    head = ("workload", "", "sample", "score", "old log-probs", "update", "completion tokens/s")
    rows = []
    for step in steps:
        full = step["summary"]["signal"]
        for side, label in (("trl", "TRL"), ("ours", "here")):
            phases = full[side]["phases"]
            rows.append(
                (
                    step["workload"]["name"] if side == "trl" else "",
                    label,
                    *(f"{phases[n]:.2f}" for n in ("sample", "score", "old_logprobs", "update")),
                    f"{full[side]['tokens_per_second']:.0f}",
                )
            )
        floor = full["floor"]
        rows.append(("", "floor", f"{floor['sample']:.2f}", "", "", f"{floor['update']:.2f}", ""))
    return _table(head, rows)


def _series_table(series: list[dict[str, Any]]) -> list[str]:
    rows = []
    for varied in series:
        for size, point in varied["points"].items():
            found = point["summary"]["signal"]
            unit = _unit(point)
            rows.append(
                (
                    varied["varied"].replace("_", " "),
                    f"{int(size):,}".replace(",", " "),
                    f"{found['trl'][unit]:.2f}",
                    f"{found['ours'][unit]:.2f}",
                    f"{found['ratio']:.1f}",
                    f"{_mb(found['trl']['extra_bytes'])} → {_mb(found['ours']['extra_bytes'])}",
                )
            )
    if not rows:
        return ["Not measured yet: `python benchmarks/step.py --all`."]
    table = _table(("varied", "size", "TRL, s", "here, s", "ratio", "extra memory, MB"), rows)
    return [*table, "", "![Ratios against sizes](performance-series.svg)"]


def _machine(steps: list[dict[str, Any]]) -> list[str]:
    if not steps:
        return []
    machine, packages = steps[0]["machine"], steps[0]["machine"]["packages"]
    worst = max(s["equality"]["relative_difference"] for s in steps if s["equality"])
    rate = max(s["rates"]["flops"] for s in steps) / 1e9
    return [
        f"{machine['gpu'] or machine['cpu']}, {machine['threads']} thread(s), Python "
        f"{machine['python']}, PyTorch {packages['torch']}, transformers "
        f"{packages['transformers']}, TRL {steps[0]['trl_version']}; at best {rate:.0f} GFLOP/s. "
        f"Medians of {steps[0]['options']['repeats']} steps, seed {steps[0]['options']['seed']}. "
        f"For identical rollouts and rewards the two gradients differ by at most {worst:.0e} of "
        "their norm.",
    ]


def _unit(step: dict[str, Any]) -> str:
    return "cpu" if step["workload"]["device"] == "cpu" else "wall"


def _mb(size: float | None) -> str:
    return "?" if size is None else f"{size / 1e6:.0f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return lines + [f"| {' | '.join(row)} |".replace("|  |", "| |") for row in rows]
