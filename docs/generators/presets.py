"""The table in docs/explanation/presets.md, from the raw result of benchmarks/presets.py."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from generators.readme import each
from generators.source import ROOT, table

RESULT = ROOT / "benchmarks/results/presets.json"
PAGE = ROOT / "docs/explanation/presets.md"
MARKED = re.compile(r"(<!-- presets -->\n).*?(<!-- /presets -->)", re.DOTALL)


def files() -> dict[Path, str]:
    """The page with the figures of the result."""
    result = json.loads(RESULT.read_text("utf-8"))
    text = "\n".join(lines(result))
    return {PAGE: MARKED.sub(lambda m: f"{m[1]}{text}\n{m[2]}", PAGE.read_text("utf-8"))}


def lines(result: dict[str, Any]) -> list[str]:
    """One row per preset, one number per seed, and on what it was measured."""
    runs, machine = result["runs"], result["machine"]
    rows = []
    for preset in sorted({run["preset"] for run in runs}):
        own = [run for run in runs if run["preset"] == preset]
        rows.append(
            (
                f"`{preset}`",
                _listed(run["seed"] for run in own),
                each([run["after"]["sampled"] for run in own], 2),
                each([run["after"]["greedy"] for run in own], 2),
                each([run["length_after"] for run in own], 0),
                each([run["cpu_seconds"] for run in own], 0),
            )
        )
    head = ("loss", "seeds", "accuracy, sampled", "accuracy, greedy", "tokens", "CPU seconds")
    return [
        *table(head, rows),
        "",
        f"After {_listed(run['steps'] for run in runs)} steps, on {result['prompts']} held-out "
        f"prompts; before, accuracy is {_listed(round(r['before']['sampled'], 2) for r in runs)} "
        f"sampled and {_listed(round(r['before']['greedy'], 2) for r in runs)} greedy. One thread "
        f"of {machine['cpu']}, PyTorch",
        f"{machine['torch']}; made by [a script](../../benchmarks/presets.py), "
        "[raw result](../../benchmarks/results/presets.json).",
    ]


def _listed(values: Any) -> str:
    return ", ".join(map(str, sorted(set(values))))
