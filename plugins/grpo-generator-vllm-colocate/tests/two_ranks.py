"""Run by ``test_ranks.py`` under torchrun: a policy on two ranks, with an engine in each or one for
both."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

import torch
import torch.distributed as dist

from grpo_core import ModelSettings, OptimizerSettings, Policy, Run, SamplingParams, TrainSettings
from grpo_core import train as run_training
from grpo_core.builtin.single_turn import SingleTurn
from grpo_core.demo import checkpoint
from grpo_core.demo.arithmetic import Arithmetic
from grpo_core.protocols import Generator
from grpo_core.settings import DynamicSamplingSettings, EvaluationSettings, LoraSettings
from grpo_core.types import Rollout, RolloutRequest
from grpo_generator_vllm_colocate import VLLMColocateConfig, VLLMColocateGenerator
from grpo_losses import Dapo, GroupAdvantage


def length(completion_ids: list[list[int]], **_: object) -> list[float]:
    return [float(len(ids) + sum(ids) % 5) for ids in completion_ids]


def parity(completion_ids: list[list[int]], **_: object) -> list[float]:
    """Of two completions both are often the same, and their group has no signal."""
    return [float(sum(ids) % 2) for ids in completion_ids]


class Waves:
    """Asks for one prompt after the other, and for some of them several times."""

    def rollouts(
        self, request: RolloutRequest, generator: Generator
    ) -> Iterator[Sequence[Rollout]]:
        asked = request.generate
        for index, key in enumerate(asked.prompt_keys_P):
            one = replace(
                request,
                prompts_P=(request.prompts_P[index],),
                generate=replace(
                    asked, prompt_ids_P=(asked.prompt_ids_P[index],), prompt_keys_P=(key,)
                ),
            )
            for _ in range(1 + key % 3):
                groups = list(SingleTurn().rollouts(one, generator))
            yield from groups


EVEN: dict[str, Any] = {
    "rewards": [length],
    "settings": TrainSettings(steps=2, prompts_per_step=4, group_size=3),
}
UNEVEN: dict[str, Any] = {
    "environment": Waves(),
    "rewards": [parity],
    "evaluation": EvaluationSettings(prompts=3),
    "settings": TrainSettings(
        steps=2,
        prompts_per_step=4,
        group_size=2,
        dynamic_sampling=DynamicSamplingSettings(max_rounds=4),
    ),
}
"""Ranks that sample unequally often: 3 prompts to evaluate, some places to fill again, waves."""


def main(output: Path, options: dict[str, Any], lora_rank: int, uneven: bool) -> None:
    lora = LoraSettings(r=lora_rank) if lora_rank else None
    policy = Policy(
        ModelSettings(path=str(checkpoint("habit")), threads=1, lora=lora),
        OptimizerSettings(learning_rate=1e-3),
    )
    group = dist.group.WORLD if dist.is_initialized() else None
    run = Run(
        policy=policy,
        task=Arithmetic(),
        generator=VLLMColocateGenerator(VLLMColocateConfig(**options)),
        advantage=GroupAdvantage(),
        loss=Dapo(),
        sampling=SamplingParams(max_tokens=12),
        output=output,
        **(UNEVEN if uneven else EVEN),
    )
    result = run_training(run)
    # The engines have ended; the ranks must still be able to speak with each other.
    assert (dist.group.WORLD if dist.is_initialized() else None) is group
    weights = torch.cat([p.detach().flatten() for p in policy.model.parameters()])
    if group is not None:
        first = weights.clone()
        dist.broadcast(first, src=0)
        assert torch.equal(first, weights), "the ranks have drifted apart"
    if policy.is_main:
        keys = ("ratio/sampler_mismatch_max", "length/mean", "reward/mean", "optim/grad_norm")
        rounds = "sampling/rounds"
        history = [
            {k: step[k] for k in keys} | {rounds: step.get(rounds)} for step in result.history
        ]
        found = {"history": history, "evaluations": result.evaluations}
        (output / "found.json").write_text(json.dumps(found, default=dict))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "uneven")
