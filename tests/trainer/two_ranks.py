"""Run by ``test_ranks.py`` under torchrun: the demo's policy, two steps, weights to a file."""

from __future__ import annotations

import atexit
import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from grpo_core import (
    CheckpointSettings,
    ModelSettings,
    OptimizerSettings,
    Policy,
    Run,
    SamplingParams,
    TrainSettings,
    hookimpl,
)
from grpo_core import train as run_training
from grpo_core.demo.arithmetic import Arithmetic
from grpo_core.types import RolloutsScored
from grpo_generator_hf import HFConfig, HFGenerator
from grpo_losses import AdaptiveEntropy, Dapo, DapoConfig, GroupAdvantage, Grpo, GrpoConfig

LOSSES = {
    "plain": Dapo(),
    # Everything that is about the step as a whole: ranks of entropies, a mean over its tokens
    # beside another aggregation, a coefficient that follows it, rollouts left out.
    "terms": Grpo(
        GrpoConfig(
            top_entropy=0.4,
            adaptive_entropy=AdaptiveEntropy(target=9.0, delta=0.05),
            mask_truncated=True,
        )
    ),
    "router": Dapo(DapoConfig(router_aux_coef=0.1)),
    # Each rank samples its next share in a thread, beside the other's collectives.
    "ahead": Dapo(),
}
EXPERTS_APART = {"experts_implementation": "eager"}
"""Grouped products have no float64."""


def length(completion_ids: list[list[int]], **_: object) -> list[float]:
    return [float(len(ids) + sum(ids) % 5) for ids in completion_ids]


def silent_if_even(completion_ids: list[list[int]], answer: list[str], **_: object) -> list[float]:
    """Prompts with an even answer teach nothing."""
    return [
        float(int(a) % 2 and len(ids) + sum(ids) % 5)
        for ids, a in zip(completion_ids, answer, strict=True)
    ]


class FailsInSecondStep:
    @hookimpl
    def grpo_rollouts_scored(self, event: RolloutsScored) -> None:
        if event.step == 1:
            raise OSError("power cut")


def main(
    model: str, output: Path, loss: str, dynamic: dict[str, int] | None, checkpoints: str
) -> None:
    run = Run(
        policy=Policy(
            ModelSettings(
                path=model,
                dtype="float64",
                init_kwargs=EXPERTS_APART if loss == "router" else {},
            ),
            OptimizerSettings(learning_rate=1e-3),
        ),
        task=Arithmetic(),
        generator=HFGenerator(HFConfig(device="cpu" if loss == "ahead" else None)),
        advantage=GroupAdvantage(),
        loss=LOSSES[loss],
        rewards=[silent_if_even if dynamic else length],
        settings=TrainSettings(
            steps=2,
            prompts_per_step=4,
            group_size=3,
            passes_per_step=2,
            dynamic_sampling=dynamic,
            schedule="ahead" if loss == "ahead" else "synchronous",
            # Several microbatches of other sizes on each rank: their shares must add up.
            tokens_per_microbatch=60 if loss == "router" else 16384,
        ),
        sampling=SamplingParams(max_tokens=12),
        output=output,
        checkpoints=CheckpointSettings(every_steps=1) if checkpoints else None,
        observers=[FailsInSecondStep()] if checkpoints == "fail" else [],
    )
    result = run_training(run, resume="newest" if checkpoints else None)
    if run.policy.is_main:
        weights = {n: p.detach() for n, p in run.policy.model.named_parameters()}
        torch.save(weights, output / "weights.pt")
        steps = [
            {k: v for k, v in step.items() if not k.startswith("time/")} for step in result.history
        ]
        (output / "history.json").write_text(json.dumps(steps))


@atexit.register
def group_was_left() -> None:
    """Registered before the policy's own, hence called after it."""
    if dist.is_initialized():
        print("the process group outlives the run", file=sys.stderr, flush=True)
        os._exit(3)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4]), sys.argv[5])
