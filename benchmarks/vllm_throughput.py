"""Sampling on vLLM, next to TRL on the same engine, turn by turn.

``python benchmarks/vllm_throughput.py --trl-python PYTHON`` compares servers and their clients,
with ``--colocate-python PYTHON`` engines in the trainer's process; ``--report`` then writes the
tables of docs/explanation/performance.md. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from demo_seeds import machine
from vllm_bench.sides import Colocated, Workload, both

from grpo_core.demo import checkpoint
from grpo_generator_vllm_server.config import LaunchSettings
from grpo_generator_vllm_server.launch import engine_python

RESULTS = Path(__file__).parent / "results"
SERVER, COLOCATE = RESULTS / "vllm_throughput.json", RESULTS / "vllm_throughput_colocate.json"


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of each side, and of the ratios within rounds (theirs by ours)."""
    columns = [name for name in rounds[0]["ours"] if name != "tokens"]
    sides = {
        side: {
            **{c: statistics.median(r[side][c] for r in rounds) for c in columns},
            "tokens_per_second": statistics.median(
                r[side]["tokens"] / r[side]["wall"] for r in rounds
            ),
        }
        for side in ("ours", "trl")
    }
    ratios = {}
    for column in columns:
        each = sorted(r["trl"][column] / r["ours"][column] for r in rounds)
        ratios[column] = {"median": statistics.median(each), "least": each[0], "most": each[-1]}
    syncs = [r["sync_seconds"] for r in rounds if "sync_seconds" in r]
    sync = {"sync_seconds": statistics.median(syncs)} if syncs else {}
    return {**sides, "trl_by_ours": ratios, **sync}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trl-python", help="Python of the environment with trl and vllm.")
    parser.add_argument(
        "--colocate-python", help="Python of one with this and vllm: engines in the process."
    )
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, nargs=2, default=[16, 96])
    parser.add_argument("--completion-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--report", action="store_true", help="Nothing but the page, from results.")
    arguments = parser.parse_args()
    if not arguments.report:
        if not arguments.trl_python:
            parser.error("--trl-python is needed")
        compared, output = (colocated, COLOCATE) if arguments.colocate_python else (servers, SERVER)
        workload = asked_for(arguments)
        result = {
            "machine": machine(),
            "workload": {k: getattr(workload, k) for k in workload.__dataclass_fields__},
            **compared(workload, arguments),
        }
        result["summary"] = summary(result["rounds"])
        output.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    else:
        from vllm_bench.report import throughput, throughput_colocated

        throughput(SERVER)
        throughput_colocated(COLOCATE)


def asked_for(arguments: argparse.Namespace) -> Workload:
    """The batches."""
    return Workload(
        prompts=arguments.prompts,
        group_size=arguments.group_size,
        prompt_tokens=tuple(arguments.prompt_tokens),
        max_tokens=arguments.completion_tokens,
        vocabulary=281,
    )


def in_turn(
    sides: Mapping[str, Any], rounds: int, after: Callable[[], dict[str, float]] = dict
) -> list[dict[str, Any]]:
    """A batch of each side, over and over; who is first changes from round to round."""
    kept: list[dict[str, Any]] = []
    for number in range(-2, rounds):
        names = list(sides) if number % 2 else list(sides)[::-1]
        found: dict[str, Any] = {n: sides[n].sample(number) for n in names}
        if number >= 0:  # the first ones warm up
            kept.append({**found, **after()})
        print(number, {n: round(found[n]["wall"], 2) for n in names}, flush=True)
    return kept


def servers(workload: Workload, arguments: argparse.Namespace) -> dict[str, Any]:
    """A server and a client each; ours takes new weights after every round."""
    python = engine_python(LaunchSettings())
    with (
        tempfile.TemporaryDirectory() as folder,
        both(checkpoint("habit"), workload, python, arguments.trl_python, Path(folder)) as sides,
    ):
        ours, theirs = sides
        rounds = in_turn(
            {"ours": ours, "trl": theirs},
            arguments.rounds,
            lambda: {"sync_seconds": ours.sync()},
        )
        return {"trl": theirs.facts["trl"], "trl_sync": theirs.facts["sync"], "rounds": rounds}


def colocated(workload: Workload, arguments: argparse.Namespace) -> dict[str, Any]:
    """An engine each, in the process that asks it."""
    pythons = {"ours": arguments.colocate_python, "trl": arguments.trl_python}
    with ExitStack() as stack:
        sides = {}
        for side, python in pythons.items():
            sides[side] = Colocated(side, checkpoint("habit"), workload, python)
            stack.callback(sides[side].close)
        rounds = in_turn(sides, arguments.rounds)
    ask = [arguments.trl_python, "-c", "import importlib.metadata as m; print(m.version('trl'))"]
    trl = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    return {"trl": trl, "rounds": rounds}


if __name__ == "__main__":
    main()
