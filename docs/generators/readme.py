"""The figures in README.md, from the raw result of benchmarks/demo_seeds.py."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from generators.source import ROOT, table

RESULT = ROOT / "benchmarks/results/demo_seeds.json"
README = ROOT / "README.md"
MARKED = re.compile(r"(<!-- demo_seeds -->\n).*?(<!-- /demo_seeds -->)", re.DOTALL)


def files() -> dict[Path, str]:
    """README.md with the figures of the result."""
    result = json.loads(RESULT.read_text("utf-8"))
    text = "\n".join(lines(result))
    return {README: MARKED.sub(lambda m: f"{m[1]}{text}\n{m[2]}", README.read_text("utf-8"))}


def lines(result: dict[str, Any]) -> list[str]:
    """A table with one row per starting checkpoint, and on what it was measured."""
    rows = []
    for start, command in (("habit", "`grpo demo`"), ("plain", "`grpo demo --plain`")):
        runs = [run for run in result["runs"] if run["start"] == start]
        if runs:
            rows.append((command, *_row(runs)))
    machine, runs = result["machine"], result["runs"]
    head = ("command", "steps", "accuracy, sampled", "accuracy, greedy", "CPU seconds")
    return [
        *table(head, rows),
        "",
        f"Seeds {', '.join(sorted({str(run['seed']) for run in runs}))}; {result['prompts']} "
        f"held-out prompts; {runs[0]['parameters'] / 1e6:.2f} M parameters; one thread of "
        f"{machine['cpu']}, PyTorch",
        f"{machine['torch']}; made by [a script](benchmarks/demo_seeds.py), "
        "[raw result](benchmarks/results/demo_seeds.json).",
    ]


def _row(runs: list[dict[str, Any]]) -> tuple[str, ...]:
    """One number per seed, in the same order everywhere."""
    change = [
        f"{each([r['before'][kind] for r in runs], 2)} → "
        f"{each([r['after'][kind] for r in runs], 2)}"
        for kind in ("sampled", "greedy")
    ]
    steps = each([r["steps"] for r in runs], 0)
    return (steps, *change, each([r["cpu_seconds"] for r in runs], 0))


def each(values: list[float], digits: int) -> str:
    """One number per seed; only one where all are the same."""
    texts = [f"{value:.{digits}f}" for value in values]
    return ", ".join(texts if len(set(texts)) > 1 else texts[:1])
