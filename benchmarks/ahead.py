"""What `train.schedule: ahead` saves next to a sampler of some speed: wall time of whole runs.

The sampler is simulated. Its completions are real, drawn by `hf` with a copy of the weights; then
it sleeps, so that sampling takes a chosen multiple of the update's time and, as on a server, costs
the trainer's machine next to nothing. Runs of both schedules alternate.

``python benchmarks/ahead.py`` writes ``benchmarks/results/ahead.json``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from step_bench.machine import facts

from grpo_core import Policy, Run, train
from grpo_core.demo import checkpoint
from grpo_core.demo.arithmetic import Arithmetic
from grpo_core.settings import ModelSettings, OptimizerSettings, SamplingParams, TrainSettings
from grpo_core.types import GeneratedGroup, GenerateRequest
from grpo_generator_hf import HFConfig, HFGenerator
from grpo_losses import Dapo, GroupAdvantage

RESULT = Path(__file__).parent / "results" / "ahead.json"
STEPS = 12
SKIPPED = 2
"""First steps, which warm up and which nothing has been sampled for ahead."""


class Slow(HFGenerator):
    """Hands the groups of a request over when so many seconds have passed since it came."""

    def __init__(self, seconds: float) -> None:
        super().__init__(HFConfig(device="cpu"))
        self._seconds = seconds

    def generate(self, request: GenerateRequest) -> Iterator[GeneratedGroup]:
        # The canary is a request of one completion.
        due = time.perf_counter() + (self._seconds if request.group_size > 1 else 0.0)
        groups = list(super().generate(request))
        time.sleep(max(0.0, due - time.perf_counter()))
        yield from groups


def length(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Differs within every group, so that no rollout is skipped in the update."""
    return [float(len(ids) + sum(ids) % 7) for ids in completion_ids]


def steps(schedule: str, seconds: float, output: str) -> list[Mapping[str, float]]:
    """One run; the metrics of the steps that count."""
    run = Run(
        policy=Policy(ModelSettings(path=str(checkpoint("habit"))), OptimizerSettings()),
        task=Arithmetic(),
        generator=Slow(seconds),
        advantage=GroupAdvantage(),
        loss=Dapo(),
        rewards=[length],
        settings=TrainSettings(
            steps=STEPS,
            prompts_per_step=16,
            group_size=8,
            # Several passes make the update the larger part, and what `Slow` computes the smaller.
            passes_per_step=4,
            schedule=schedule,  # type: ignore[arg-type]
        ),
        sampling=SamplingParams(max_tokens=32),
        output=output,
    )
    return train(run).history[SKIPPED:]


def median(history: list[Mapping[str, float]], name: str) -> float:
    return statistics.median(step[name] for step in history)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--factors", type=float, nargs="+", default=[0.5, 1.0, 2.0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        found = steps("synchronous", 0.0, f"{folder}/warm")
        update = median(found, "time/step") - median(found, "time/sample")
        for factor in arguments.factors:
            for repeat in range(arguments.repeats):
                pair = {}
                for schedule in ("synchronous", "ahead"):
                    name = f"{folder}/{factor}-{repeat}-{schedule}"
                    history = steps(schedule, factor * update, name)
                    pair[schedule] = median(history, "time/step")
                    if schedule == "synchronous":
                        sampling = median(history, "time/sample")
                rows.append(
                    {
                        "factor": factor,
                        "sampling_seconds": sampling,
                        "step_seconds": pair,
                        "ratio": pair["synchronous"] / pair["ahead"],
                        # Nothing but the longer of the two is left.
                        "ideal": pair["synchronous"]
                        / max(sampling, pair["synchronous"] - sampling),
                    }
                )
                print(json.dumps(rows[-1]), flush=True)
    result = {"machine": facts("cpu", 1), "update_seconds": update, "runs": rows}
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
