"""Run by ``test_ranks.py`` under torchrun: the demo's policy, two steps, weights to a file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from grpo_core import ModelSettings, OptimizerSettings, Policy, Run, SamplingParams, TrainSettings
from grpo_core import train as run_training
from grpo_core.demo.arithmetic import Arithmetic
from grpo_generator_hf import HFGenerator
from grpo_losses import Dapo, GroupAdvantage


def length(completion_ids: list[list[int]], **_: object) -> list[float]:
    return [float(len(ids) + sum(ids) % 5) for ids in completion_ids]


def main(model: str, output: Path) -> None:
    run = Run(
        policy=Policy(
            ModelSettings(path=model, dtype="float64"), OptimizerSettings(learning_rate=1e-3)
        ),
        task=Arithmetic(),
        generator=HFGenerator(),
        advantage=GroupAdvantage(),
        loss=Dapo(),
        rewards=[length],
        settings=TrainSettings(steps=2, prompts_per_step=4, group_size=3, passes_per_step=2),
        sampling=SamplingParams(max_tokens=12),
        output=output,
    )
    result = run_training(run)
    if run.policy.is_main:
        weights = {n: p.detach() for n, p in run.policy.model.named_parameters()}
        torch.save(weights, output / "weights.pt")
        steps = [
            {k: v for k, v in step.items() if not k.startswith("time/")} for step in result.history
        ]
        (output / "history.json").write_text(json.dumps(steps))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], Path(sys.argv[2]))
