"""Run by ``test_rewards.py`` under torchrun: a reward that fails on one rank alone."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from grpo_core import ModelSettings, Policy, Run, SamplingParams, TrainSettings, train
from grpo_core.demo.arithmetic import Arithmetic
from grpo_generator_hf import HFGenerator
from grpo_losses import Dapo, GroupAdvantage


def sick(completion_ids: list[list[int]], trainer_state: object) -> list[float]:
    if os.environ["RANK"] == "1" and trainer_state.global_step == 1:  # type: ignore[attr-defined]
        raise OSError("only here")
    return [float(sum(ids) % 5) for ids in completion_ids]


if __name__ == "__main__":
    torch.set_num_threads(1)
    run = Run(
        policy=Policy(ModelSettings(path=sys.argv[1])),
        task=Arithmetic(),
        generator=HFGenerator(),
        advantage=GroupAdvantage(),
        loss=Dapo(),
        rewards=[sick],
        settings=TrainSettings(steps=3, prompts_per_step=4, group_size=2),
        sampling=SamplingParams(max_tokens=8),
        output=Path(sys.argv[2]),
    )
    try:
        train(run)
    except Exception as error:
        Path(sys.argv[2], f"rank-{os.environ['RANK']}.txt").write_text(str(error))
        raise
