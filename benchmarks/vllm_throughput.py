"""Sampling on a vLLM server, next to TRL's client and server on the same engine, turn by turn.

``python benchmarks/vllm_throughput.py --trl-python PYTHON`` writes
``benchmarks/results/vllm_throughput.json``; ``--report`` then writes the table of
docs/explanation/performance.md from it. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from demo_seeds import machine
from vllm_bench.sides import Ours, Theirs, Workload, both

from grpo_core.demo import checkpoint
from grpo_generator_vllm_server.config import LaunchSettings
from grpo_generator_vllm_server.launch import engine_python

RESULT = Path(__file__).parent / "results" / "vllm_throughput.json"
COLUMNS = ("wall", "client_cpu", "server_cpu")


def measured(side: Ours | Theirs, number: int) -> dict[str, float]:
    """One batch, with the CPU seconds of the server's processes."""
    before = side.server.cpu()
    found = side.sample(number)
    return {**found, "server_cpu": side.server.cpu() - before}


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of each side, and of the ratios within rounds (theirs by ours)."""
    sides = {
        side: {
            **{c: statistics.median(r[side][c] for r in rounds) for c in COLUMNS},
            "tokens_per_second": statistics.median(
                r[side]["tokens"] / r[side]["wall"] for r in rounds
            ),
        }
        for side in ("ours", "trl")
    }
    ratios = {}
    for column in COLUMNS:
        each = sorted(r["trl"][column] / r["ours"][column] for r in rounds)
        ratios[column] = {"median": statistics.median(each), "least": each[0], "most": each[-1]}
    sync = statistics.median(r["sync_seconds"] for r in rounds)
    return {**sides, "trl_by_ours": ratios, "sync_seconds": sync}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trl-python", help="Python of the environment with trl and vllm.")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, nargs=2, default=[16, 96])
    parser.add_argument("--completion-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--report", action="store_true", help="Nothing but the page, from results.")
    arguments = parser.parse_args()
    if not arguments.report:
        if not arguments.trl_python:
            parser.error("--trl-python is needed")
        result = compare(arguments)
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    else:
        from vllm_bench.report import throughput

        throughput(arguments.output)


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Both sides in turn, a batch each; who is first changes from round to round."""
    workload = Workload(
        prompts=arguments.prompts,
        group_size=arguments.group_size,
        prompt_tokens=tuple(arguments.prompt_tokens),
        max_tokens=arguments.completion_tokens,
        vocabulary=281,
    )
    python = engine_python(LaunchSettings())
    rounds: list[dict[str, Any]] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        both(checkpoint("habit"), workload, python, arguments.trl_python, Path(folder)) as sides,
    ):
        ours, theirs = sides
        for number in range(-2, arguments.rounds):
            order = {"ours": ours, "trl": theirs}
            names = list(order) if number % 2 else list(order)[::-1]
            found: dict[str, Any] = {n: measured(order[n], number) for n in names}
            found["sync_seconds"] = ours.sync()
            if number >= 0:  # the first ones warm up
                rounds.append(found)
            print(number, {n: round(found[n]["wall"], 2) for n in names}, flush=True)
        facts = theirs.facts
    return {
        "machine": machine(),
        "trl": facts["trl"],
        "trl_sync": facts["sync"],
        "workload": {k: getattr(workload, k) for k in workload.__dataclass_fields__},
        "rounds": rounds,
        "summary": summary(rounds),
    }


if __name__ == "__main__":
    main()
