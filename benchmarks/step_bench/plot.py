"""The plots of docs/explanation/performance.md: SVG, the same bytes for the same results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

COLOURS = {"sample": "#4c78a8", "score": "#b0b0b0", "old_logprobs": "#e5ae38", "update": "#f58518"}
LABELS = {"old_logprobs": "old log-probs"}


def steps(results: list[dict[str, Any]], path: Path) -> None:
    """One group of stacked bars per workload, as shares of TRL's time."""
    if not results:
        return
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.subplots(1, len(results), sharey=True, squeeze=False)[0]
    for axis, result in zip(axes, results, strict=True):
        _bars(axis, result)
    axes[0].set_ylabel("share of TRL's time")
    axes[-1].legend(frameon=False, fontsize=8)
    _save(figure, path)


def _bars(axis: Any, result: dict[str, Any]) -> None:
    found = result["summary"]
    full, half = found["signal"], found.get("half")
    unit = "cpu" if result["workload"]["device"] == "cpu" else "wall"
    columns = [("TRL", full["trl"]["phases"]), ("here", full["ours"]["phases"])]
    if half:
        columns.append(("half\nsilent", half["ours"]["phases"]))
    columns.append(("floor", full["floor"]))
    whole = full["trl"][unit]
    for place, (_, phases) in enumerate(columns):
        bottom = 0.0
        for name, colour in COLOURS.items():
            share = phases.get(name, 0.0) / whole
            label = LABELS.get(name, name) if place == 0 else None
            axis.bar(place, share, 0.8, bottom=bottom, color=colour, label=label)
            bottom += share
        axis.text(place, bottom + 0.01, f"{bottom * whole:.2g} s", ha="center", fontsize=7)
    axis.set_xticks(range(len(columns)), [label for label, _ in columns], fontsize=8)
    axis.set_title(result["workload"]["name"], fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)


def series(results: list[dict[str, Any]], path: Path) -> None:
    """TRL's time over ours, and TRL's extra memory over ours, against one size each."""
    if not results:
        return
    figure = Figure(figsize=(8, 2.6), layout="constrained")
    axes = figure.subplots(1, len(results), sharey=True, squeeze=False)[0]
    for axis, result in zip(axes, results, strict=True):
        sizes = [int(size) for size in result["points"]]
        found = [point["summary"]["signal"] for point in result["points"].values()]
        axis.plot(sizes, [f["ratio"] for f in found], "o-", color="#4c78a8", label="time")
        memory = [f.get("memory_ratio") for f in found]
        if None not in memory:
            axis.plot(sizes, memory, "s--", color="#f58518", label="extra memory")
        axis.set_xscale("log", base=2)
        axis.set_xticks(sizes, [str(s) for s in sizes], fontsize=7, rotation=45)
        axis.set_xlabel(result["varied"].replace("_", " "), fontsize=9)
        axis.axhline(1, color="#999999", linewidth=0.8)
        axis.spines[["top", "right"]].set_visible(False)
    # Once all is drawn: a limit on one axis ends the scaling of those that share it.
    axes[0].set_ylim(bottom=0)
    axes[0].set_ylabel("TRL / here")
    axes[0].legend(frameon=False, fontsize=8)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    # Without these every run would write other identifiers and another date.
    with mpl.rc_context({"svg.hashsalt": "grpo", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None})
