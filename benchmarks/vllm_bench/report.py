"""The section on vLLM of docs/explanation/performance.md, from the results."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from step_bench.plot import _save
from step_bench.report import PAGE, _between, _table

LAST = 20
COLOURS = {"hf": "#4c78a8", "vllm-server": "#f58518", "vllm-colocate": "#54a24b"}
WIDTHS = {"hf": 1.0, "vllm-server": 2.5, "vllm-colocate": 1.0}
"""The two on vLLM may lie on each other."""


def curves(result: Path, page: Path = PAGE) -> None:
    """Rewrite the table, and draw the plot beside the page."""
    found = json.loads(result.read_text("utf-8"))
    lines = [
        *_curves_table(found),
        "",
        f"{len({r['seed'] for r in found['runs']})} seeds; accuracy of sampled answers to "
        f"{found['prompts']} held-out prompts, and mean reward of training, ± standard errors that "
        "take prompts, steps and seeds for independent. "
        f"{found['machine']['cpu']}, one thread each for trainer and engine; "
        f"{_versions(found['runs'])}. Seconds are wall time on a machine with other work.",
    ]
    text = _between(page.read_text("utf-8"), "vllm-curves", "\n".join(lines))
    page.write_text(text, "utf-8")
    _plot(found["runs"], page.parent / "performance-vllm.svg")


def throughput(result: Path, page: Path = PAGE) -> None:
    """Rewrite the table."""
    found = json.loads(result.read_text("utf-8"))
    summary, work, machine = found["summary"], found["workload"], found["machine"]
    rows = [
        (
            label,
            f"{summary[side]['tokens_per_second']:.0f}",
            *(f"{summary[side][c]:.2f}" for c in ("wall", "client_cpu", "server_cpu")),
            sync,
        )
        for side, label, sync in (
            (
                "trl",
                f"TRL {found['trl']}",
                "refuses a CPU" if found["trl_sync"] else "not measured",
            ),
            ("ours", "`vllm-server`", f"{summary['sync_seconds']:.2f}"),
        )
    ]
    ratios = summary["trl_by_ours"]
    rows.append(("TRL / here", "", *(_ratio(ratios[c]) for c in ratios), ""))
    head = ("", "tokens/s", "wall, s", "client CPU, s", "server CPU, s", "weight sync, s")
    least, most = work["prompt_tokens"]
    lines = [
        *_table(head, rows),
        "",
        f"{work['prompts']} prompts of {least} to {most} tokens, {work['group_size']} completions "
        f"each, all of {work['max_tokens']} tokens, with log-probs; medians of "
        f"{len(found['rounds'])} rounds, ratios within rounds (least to most). The bundled "
        f"checkpoint in float32, {machine['cpu']}, one thread for each engine.",
    ]
    text = _between(page.read_text("utf-8"), "vllm-throughput", "\n".join(lines))
    page.write_text(text, "utf-8")


def throughput_colocated(result: Path, page: Path = PAGE) -> None:
    """Rewrite the table of engines in the trainer's process."""
    found = json.loads(result.read_text("utf-8"))
    summary = found["summary"]
    rows = [
        (
            label,
            f"{summary[side]['tokens_per_second']:.0f}",
            *(f"{summary[side][c]:.2f}" for c in ("wall", "cpu")),
        )
        for side, label in (("trl", f"TRL {found['trl']}"), ("ours", "`vllm-colocate`"))
    ]
    ratios = summary["trl_by_ours"]
    rows.append(("TRL / here", "", *(_ratio(ratios[c]) for c in ratios)))
    lines = [
        *_table(("", "tokens/s", "wall, s", "CPU, s"), rows),
        "",
        f"The same batches, in bfloat16 and compiled, {len(found['rounds'])} rounds, "
        f"{found['machine']['cpu']}.",
    ]
    text = _between(page.read_text("utf-8"), "vllm-throughput-colocate", "\n".join(lines))
    page.write_text(text, "utf-8")


def _ratio(found: dict[str, float]) -> str:
    return f"{found['median']:.2f} ({found['least']:.2f} to {found['most']:.2f})"


def _curves_table(found: dict[str, Any]) -> list[str]:
    head = (
        *("policy", "sampled by", "accuracy before", "after", "reward of the last 20 steps"),
        *("largest mismatch, nats", "sample, s/step", "sync, s/step"),
    )
    rows = []
    for policy, generator, runs in _grouped(found["runs"]):
        before, after = (
            _accuracy([run[when]["sampled"] for run in runs], found["prompts"])
            for when in ("before", "after")
        )
        last = [reward for run in runs for reward in run["per_step"]["reward"][-LAST:]]
        error = statistics.stdev(last) / math.sqrt(len(last))
        rows.append(
            (
                policy,
                f"`{generator}`",
                before,
                after,
                f"{statistics.mean(last):.3f} ± {error:.3f}",
                f"{max(max(run['per_step']['mismatch_max']) for run in runs):.0e}",
                *(
                    f"{statistics.median(x for r in runs for x in r['per_step'][name]):.2f}"
                    for name in ("sample_seconds", "sync_seconds")
                ),
            )
        )
    return _table(head, rows)


def _accuracy(values: Sequence[float], prompts: int) -> str:
    mean = statistics.mean(values)
    error = math.sqrt(mean * (1 - mean) / (prompts * len(values)))
    return f"{mean:.3f} ± {error:.3f}"


def _grouped(runs: list[dict[str, Any]]) -> list[tuple[str, str, list[dict[str, Any]]]]:
    keys = sorted({(r["policy"], list(COLOURS).index(r["generator"])) for r in runs})
    names = [(policy, list(COLOURS)[n]) for policy, n in keys]
    return [(p, g, [r for r in runs if (r["policy"], r["generator"]) == (p, g)]) for p, g in names]


def _versions(runs: list[dict[str, Any]]) -> str:
    found = sorted({f"PyTorch {r['versions']['torch']}" for r in runs})
    return ", ".join(found)


def _plot(runs: list[dict[str, Any]], path: Path) -> None:
    """Reward per step of every run, one panel for all weights and one for LoRA."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), layout="constrained")
    policies = sorted({r["policy"] for r in runs})
    axes = figure.subplots(1, len(policies), sharey=True, squeeze=False)[0]
    for axis, policy in zip(axes, policies, strict=True):
        for _, generator, own in (g for g in _grouped(runs) if g[0] == policy):
            for number, run in enumerate(own):
                axis.plot(
                    run["per_step"]["reward"],
                    color=COLOURS[generator],
                    linewidth=WIDTHS[generator],
                    alpha=0.8,
                    label=None if number else generator,
                )
        axis.set_title({"full": "all weights", "lora": "LoRA"}[policy], fontsize=10)
        axis.set_xlabel("step", fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("mean reward")
    axes[0].legend(frameon=False, fontsize=8)
    _save(figure, path)
