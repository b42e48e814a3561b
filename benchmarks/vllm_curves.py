"""Whether the bundled task is learned alike whichever generator samples: curves over seeds.

``python benchmarks/vllm_curves.py`` writes ``benchmarks/results/vllm_curves.json``; ``--report``
then writes the table and the plot of docs/explanation/performance.md from it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from demo_seeds import PROVIDER, machine

from grpo_core.cli.demo import configs

RESULT = Path(__file__).parent / "results" / "vllm_curves.json"
ENGINE = {"dtype": "float32", "enforce_eager": True, "max_num_seqs": 128, "kv_cache_memory": "256M"}
SMALL = {"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1", "HF_HUB_OFFLINE": "1"}
"""One thread, and no compiler, whose start costs more than it gains with a model so small."""
GENERATORS: dict[str, dict[str, Any]] = {
    "hf": {"name": "hf"},
    "vllm-server": {"name": "vllm-server", "launch": {**ENGINE, "env": SMALL}},
    "vllm-colocate": {"name": "vllm-colocate", **ENGINE},
}
POLICIES: dict[str, dict[str, Any]] = {
    "full": {},
    # Twice the demo's rate makes these matrices as quick as all weights; 2e-3 needs 5 steps only.
    "lora": {"model": {"lora": {"r": 16, "alpha": 32}}, "optimizer": {"learning_rate": 8e-4}},
}
PER_STEP = {
    "reward": "reward/mean",
    "mismatch": "ratio/sampler_mismatch",
    "mismatch_max": "ratio/sampler_mismatch_max",
    "sync_seconds": "time/sync",
    "sample_seconds": "time/sample",
    "step_seconds": "time/step",
}


def measure(generator: str, policy: str, seed: int, steps: int) -> dict[str, Any]:
    """One run of the packaged demo, in this process.

    CPU seconds of the trainer are without imports; those of the server are of all its processes
    from start to end, its 25 seconds of starting included.
    """
    import torch

    # The engine in this process gets what a server gets by its environment.
    os.environ.update(SMALL)
    from grpo_core import load_run, train
    from grpo_core.demo import checkpoint

    # Two threads on two shared cores were measured several times slower than one.
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        run = load_run(
            *configs(plain=False),
            {"model": {"path": str(checkpoint("habit"))}},
            POLICIES[policy],
            {
                "generator": GENERATORS[generator],
                "train": {"seed": seed, "steps": steps},
                "evaluation": {"every": steps},
                "observers": ["jsonl"],
                "savers": [],
                "output": f"{folder}/run",
            },
        )
        cpu, wall = time.process_time(), time.perf_counter()
        result = train(run)
        spent = {"cpu_seconds": time.process_time() - cpu, "seconds": time.perf_counter() - wall}
    if result.status != "finished":
        raise SystemExit(f"{generator}, {policy}, seed {seed}: {result.status}")
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "generator": generator,
        "policy": policy,
        "seed": seed,
        "steps": steps,
        "versions": {k: v for k, v in machine().items() if k not in ("cpu", "cores", "threads")},
        "before": _accuracies(result.evaluations[0]),
        "after": _accuracies(result.evaluations[-1]),
        **spent,
        "server_cpu_seconds": children.ru_utime + children.ru_stime,
        "per_step": {k: [step[name] for step in result.history] for k, name in PER_STEP.items()},
    }


def _accuracies(evaluation: Any) -> dict[str, float]:
    return {kind: evaluation[f"eval/{kind}/{PROVIDER}"] for kind in ("sampled", "greedy")}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = list(GENERATORS)
    parser.add_argument("--generators", nargs="+", default=names, choices=names)
    parser.add_argument("--policies", nargs="+", default=list(POLICIES), choices=list(POLICIES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=70, help="As many as `grpo demo` takes.")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--report", action="store_true", help="Nothing but the page, from results.")
    arguments = parser.parse_args()
    if arguments.report:
        from vllm_bench.report import curves

        curves(arguments.output)
        return
    here = {k: v for k, v in machine().items() if k in ("cpu", "cores")} | {"threads": 1}
    runs = _known(arguments.output, here)
    # Seeds outermost: whatever else the machine does then falls on all generators alike.
    for seed in arguments.seeds:
        for policy in arguments.policies:
            for generator in arguments.generators:
                # A process of its own, so that none inherits what another has cached, and that the
                # CPU time of its server is that of its children.
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                    asked = (generator, policy, seed, arguments.steps)
                    found = pool.submit(measure, *asked).result()
                runs[generator, policy, seed] = found
                _write(arguments.output, here, runs)
                after = found["after"]["sampled"]
                print(
                    f"{generator}, {policy}, seed {seed}: {after:.3f} in {found['seconds']:.0f} s"
                )


def _known(output: Path, here: dict[str, Any]) -> dict[tuple[str, str, int], dict[str, Any]]:
    """Runs of an earlier result on the same machine, which may stand beside new ones."""
    if not output.is_file():
        return {}
    earlier = json.loads(output.read_text("utf-8"))
    if earlier["machine"] != here:
        return {}
    return {(r["generator"], r["policy"], r["seed"]): r for r in earlier["runs"]}


def _write(
    output: Path, here: dict[str, Any], runs: dict[tuple[str, str, int], dict[str, Any]]
) -> None:
    """The whole result, after every run: an interrupted one is not lost."""
    ordered = [runs[key] for key in sorted(runs)]
    from grpo_core.config import load_config

    demo = load_config([*configs(plain=False), {"model": {"path": "any"}}])
    assert demo.config.evaluation is not None
    result = {"machine": here, "prompts": demo.config.evaluation.prompts, "runs": ordered}
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
