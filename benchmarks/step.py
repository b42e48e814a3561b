"""One optimizer step, end to end, side by side with TRL: see benchmarks/README.md.

``python benchmarks/step.py --workload demo`` measures one workload, ``--all`` all of them and the
series; ``--report`` writes the table and the plot of docs/explanation/performance.md from the
results in benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from step_bench.measure import Options, measure, stamp
from step_bench.workloads import SERIES, WORKLOADS, Workload

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """The command line."""
    arguments = _parser().parse_args()
    options = Options(
        repeats=arguments.repeats,
        seed=arguments.seed,
        threads=arguments.threads,
        trl_python=arguments.trl_python,
        half=not arguments.no_half,
        sides=("ours",) if arguments.only_ours else ("trl", "ours"),
    )
    names = arguments.workload or ([n for n in WORKLOADS if "gpu" not in n] * arguments.all)
    for name in names:
        workload = changed(WORKLOADS[name], arguments)
        _write(arguments.output / f"step-{name}.json", _measured(workload, options))
    for varied in arguments.series or (list(SERIES) * arguments.all):
        few = replace(options, repeats=min(options.repeats, 2), half=False)
        points = {
            size: _measured(changed(workload, arguments), few)
            for size, workload in SERIES[varied].items()
        }
        _write(arguments.output / f"series-{varied}.json", {"varied": varied, "points": points})
    if arguments.report or arguments.all:
        from step_bench.report import write

        write(arguments.output)


def changed(workload: Workload, arguments: argparse.Namespace) -> Workload:
    """The workload with what the command line says otherwise."""
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name in (
            "prompts",
            "group_size",
            "prompt_tokens",
            "completion_tokens",
            "trl_rows",
            "device",
        )
        if (value := getattr(arguments, name)) is not None
    }
    return replace(workload, **given)


def _measured(workload: Workload, options: Options) -> dict[str, Any]:
    print(f"{time.strftime('%H:%M:%S')} {workload.name}: {workload.summary}", flush=True)
    return {"measured": stamp(), **measure(workload, options, lambda x: print(x, flush=True))}


def _write(path: Path, data: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=1) + "\n", "utf-8")
    print(f"wrote {path}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--workload", nargs="+", choices=list(WORKLOADS), help="measure these")
    add("--series", nargs="*", choices=list(SERIES), help="measure these series")
    add("--all", action="store_true", help="all but the gpu workloads, all series, the report")
    add("--report", action="store_true", help="write table and plot from the results")
    add("--repeats", type=int, default=3, help="steps of each kind on each side")
    add("--seed", type=int, default=0, help="of weights, prompts, lengths, rewards, sampling")
    add("--threads", type=int, default=1, help="of each side")
    add("--trl-python", default=sys.executable, help="a Python that can import trl 1.16.0")
    add("--only-ours", action="store_true", help="leave TRL out")
    add("--no-half", action="store_true", help="leave out steps with groups without signal")
    add("--output", type=Path, default=RESULTS, help="folder of the results")
    add("--prompts", type=int, help="groups per step")
    add("--group-size", type=int)
    add("--prompt-tokens", type=int, nargs=2, metavar=("LEAST", "MOST"))
    add("--completion-tokens", type=int, nargs=2, metavar=("LEAST", "MOST"))
    add("--trl-rows", type=int, help="TRL's per-device batch size")
    add("--device", choices=("cpu", "cuda"))
    return parser


if __name__ == "__main__":
    main()
