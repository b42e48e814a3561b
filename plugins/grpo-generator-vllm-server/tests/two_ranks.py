"""Run by ``test_ranks.py`` under torchrun: two ranks sample ahead on one server, and weights change
in flight. The main one writes all rollouts and every version of the weights."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from grpo_core import (
    ModelSettings,
    OptimizerSettings,
    Policy,
    Run,
    SamplingParams,
    TrainSettings,
    hookimpl,
)
from grpo_core import train as run_training
from grpo_core.demo import checkpoint
from grpo_core.demo.arithmetic import Arithmetic
from grpo_core.types import RolloutsScored, WeightUpdate
from grpo_generator_vllm_server import VLLMServerConfig, VLLMServerGenerator
from grpo_losses import Dapo, GroupAdvantage

RANK = os.environ["RANK"]


class Recorded(VLLMServerGenerator):
    """Keeps what it gave to the servers."""

    output: Path

    def sync(self, update: WeightUpdate) -> int:
        held = super().sync(update)
        if RANK == "0":
            state = {name: p.detach().clone() for name, p in update.model.named_parameters()}
            torch.save(state, self.output / f"weights-{held}.pt")
        return held


def length(completion_ids: list[list[int]], **_: object) -> list[float]:
    return [float(len(ids) + sum(ids) % 5) for ids in completion_ids]


class Rows:
    """What is trained on, gathered from all ranks."""

    def __init__(self, output: Path) -> None:
        self.output = output

    @hookimpl
    def grpo_rollouts_scored(self, event: RolloutsScored) -> None:
        with (self.output / "rollouts.jsonl").open("a") as file:
            for rollout in event.rollouts_B:
                spans = [[s.token_ids, s.logprobs, s.policy_version] for s in rollout.spans]
                row = {"step": event.step, "prompt": rollout.prompt_ids, "spans": spans}
                file.write(json.dumps(row) + "\n")


def main(output: Path, url: str, way: str) -> None:
    options = {"urls": [url], "sync": way, "sync_folder": str(output / "sync")}
    generator = Recorded(VLLMServerConfig.model_validate(options))
    generator.output = output
    run = Run(
        policy=Policy(
            ModelSettings(path=str(checkpoint("habit")), threads=1),
            OptimizerSettings(learning_rate=1e-3),
        ),
        task=Arithmetic(),
        generator=generator,
        advantage=GroupAdvantage(),
        loss=Dapo(),
        rewards=[length],
        settings=TrainSettings(
            steps=4,
            prompts_per_step=4,
            group_size=3,
            schedule="ahead",
            ahead_in_flight=True,
            ahead_steps=2,
        ),
        # So hot that few completions end by themselves: sampling takes longer than an update.
        sampling=SamplingParams(max_tokens=300, temperature=1.5),
        output=output,
        observers=[Rows(output)],
    )
    result = run_training(run)
    if run.policy.is_main:
        (output / "history.json").write_text(json.dumps(result.history))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
