"""Held-out accuracy of the bundled demo before and after, over seeds: the figures of the README.

``python benchmarks/demo_seeds.py`` writes ``benchmarks/results/demo_seeds.json``; then
``python docs/generate.py`` takes them over into README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from grpo_core.cli.demo import configs

RESULT = Path(__file__).parent / "results" / "demo_seeds.json"
PROVIDER = "exact-answer"


def measure(start: str, seed: int, *further: str) -> dict[str, Any]:
    """One run of the packaged demo config, in this process, with ``further`` as ``--set``.

    CPU seconds are those of loading, training and both evaluations, without imports.
    """
    from grpo_core import load_run, train
    from grpo_core.demo import checkpoint

    packaged = configs(plain=start == "plain")
    with tempfile.TemporaryDirectory() as folder:
        sets = [f"train.seed={seed}", f"output={folder}/run", "observers=[jsonl]", "savers=[]"]
        sets += further
        cpu, wall = time.process_time(), time.perf_counter()
        run = load_run(*packaged, {"model": {"path": str(checkpoint(start))}}, sets=sets)
        result = train(run)
        spent = {"cpu_seconds": time.process_time() - cpu, "seconds": time.perf_counter() - wall}
    if result.status != "finished":
        raise SystemExit(f"{start}, seed {seed}: {result.status} after {result.steps_done} steps")
    before, after = result.evaluations[0], result.evaluations[-1]
    return {
        "start": start,
        "seed": seed,
        "steps": result.steps_done,
        "parameters": sum(p.numel() for p in run.policy.model.parameters()),
        "before": _accuracies(before),
        "after": _accuracies(after),
        "length_before": before["eval/sampled/length/mean"],
        "length_after": after["eval/sampled/length/mean"],
        **spent,
        "reward_per_step": [step["reward/mean"] for step in result.history],
    }


def _accuracies(evaluation: Any) -> dict[str, float]:
    return {kind: evaluation[f"eval/{kind}/{PROVIDER}"] for kind in ("sampled", "greedy")}


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    import torch

    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "grpo-core")},
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--no-plain", action="store_true", help="Leave the control out.")
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    import torch

    from grpo_core.config import load_config

    # Two threads on two shared cores were measured several times slower than one.
    torch.set_num_threads(1)
    starts = ["habit"] if arguments.no_plain else ["habit", "plain"]
    runs = [measure(start, seed) for start in starts for seed in arguments.seeds]
    demo = load_config([*configs(plain=False), {"model": {"path": "any"}}])
    assert demo.config.evaluation is not None
    result = {"machine": machine(), "prompts": demo.config.evaluation.prompts, "runs": runs}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
