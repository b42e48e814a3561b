"""What every loss preset learns on the bundled task, after the same number of steps, over seeds.

``python benchmarks/presets.py`` writes ``benchmarks/results/presets.json``; then
``python docs/generate.py`` makes the table of docs/explanation/presets.md from it.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from demo_seeds import machine, measure

from grpo_core.cli.demo import configs
from grpo_core.config import load_config
from grpo_core.plugins import Registry

RESULT = Path(__file__).parent / "results" / "presets.json"
DISTRIBUTION = "grpo-losses"


def presets() -> list[str]:
    """Every loss that the first-party package registers."""
    offers = Registry.installed().offers("loss")
    return sorted(r.name for r in offers if r.source.distribution == DISTRIBUTION)


def run(preset: str, seed: int, sets: list[str]) -> dict[str, Any]:
    """One run of the demo with another loss, in a process of its own."""
    import torch

    # Two threads on two shared cores were measured several times slower than one.
    torch.set_num_threads(1)
    # Not even started where the preset has no KL term.
    found = measure("habit", seed, f"loss={preset}", "reference=frozen", *sets)
    return {"preset": preset, **found}


def known(output: Path, here: dict[str, Any], sets: list[str]) -> list[dict[str, Any]]:
    """The runs of an earlier result that may stand beside new ones: same machine, same settings."""
    if not output.is_file():
        return []
    earlier = json.loads(output.read_text("utf-8"))
    same = earlier["machine"] == here and earlier["sets"] == sets
    return list(earlier["runs"]) if same else []


def write(output: Path, here: dict[str, Any], sets: list[str], runs: list[dict[str, Any]]) -> None:
    """The whole result, after every run: an interrupted table is not lost."""
    demo = load_config([*configs(plain=False), {"model": {"path": "any"}}], sets=sets)
    assert demo.config.evaluation is not None
    runs = sorted(runs, key=lambda r: (r["preset"], r["seed"]))
    result = {
        "machine": here,
        "sets": sets,
        "prompts": demo.config.evaluation.prompts,
        "runs": runs,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=2) + "\n", "utf-8")


def main() -> None:
    """The command line."""
    every = presets()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--presets", nargs="+", default=every, choices=every)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="Runs at once, a thread each.")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    here = {**machine(), "threads": 1}
    runs = {(r["preset"], r["seed"]): r for r in known(arguments.output, here, arguments.set)}
    # Spawned and not forked: torch's threads do not survive a fork. One run per process, so that
    # none inherits what another has cached.
    with ProcessPoolExecutor(
        arguments.jobs, mp_context=get_context("spawn"), max_tasks_per_child=1
    ) as pool:
        waiting = {
            pool.submit(run, preset, seed, arguments.set): (preset, seed)
            for preset in arguments.presets
            for seed in arguments.seeds
        }
        for future in as_completed(waiting):
            found = future.result()
            runs[waiting[future]] = found
            write(arguments.output, here, arguments.set, list(runs.values()))
            accuracy = found["after"]["sampled"]
            print(f"{found['preset']}, seed {found['seed']}: accuracy {accuracy:.3f}", flush=True)


if __name__ == "__main__":
    main()
