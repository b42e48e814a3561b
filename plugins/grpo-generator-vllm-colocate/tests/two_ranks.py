"""Run by ``test_ranks.py`` under torchrun: a policy on two ranks, an engine in each."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

import torch
import torch.distributed as dist

from grpo_core import ModelSettings, OptimizerSettings, Policy, Run, SamplingParams, TrainSettings
from grpo_core import train as run_training
from grpo_core.demo import checkpoint
from grpo_core.demo.arithmetic import Arithmetic
from grpo_core.settings import LoraSettings
from grpo_generator_vllm_colocate import VLLMColocateConfig, VLLMColocateGenerator
from grpo_losses import Dapo, GroupAdvantage


def length(completion_ids: list[list[int]], **_: object) -> list[float]:
    return [float(len(ids) + sum(ids) % 5) for ids in completion_ids]


def main(output: Path, options: dict[str, Any], lora_rank: int) -> None:
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
        rewards=[length],
        settings=TrainSettings(steps=2, prompts_per_step=4, group_size=3),
        sampling=SamplingParams(max_tokens=12),
        output=output,
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
        (output / "history.json").write_text(
            json.dumps([{k: step[k] for k in keys} for step in result.history])
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3]))
