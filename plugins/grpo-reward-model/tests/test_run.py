"""A real small run with rewards of every kind together."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import grpo_core as grpo
from grpo_core.demo.arithmetic import Arithmetic
from grpo_core.rewards import Reward
from grpo_generator_hf import HFGenerator
from grpo_losses import Dapo, GroupAdvantage
from grpo_reward_model import (
    RewardModel,
    RewardModelConfig,
    RewardModelServer,
    RewardModelServerConfig,
)


def brevity(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    return [-len(ids) / 8 for ids in completion_ids]


async def waits(completions: list[str], **columns: Any) -> list[float]:
    await asyncio.sleep(0.01)
    return [float(text.count("1")) for text in completions]


@pytest.fixture
def run(folders: dict[str, Path], tmp_path: Path, serve: Callable[[str], Any]) -> grpo.Run:
    path = str(folders["decoder"])
    server = RewardModelServerConfig(
        url=serve("decoder").url, protocol="vllm-classify", model="reward", tokenizer=path
    )
    return grpo.Run(
        policy=grpo.Policy(grpo.ModelSettings(path=str(folders["policy"]))),
        task=Arithmetic(),
        generator=HFGenerator(),
        rewards=[
            brevity,
            waits,
            Reward(provider=RewardModel(RewardModelConfig(path=path)), weight=0.5),
            Reward(provider=RewardModelServer(server), weight=0.0),
        ],
        advantage=GroupAdvantage(),
        loss=Dapo(),
        settings=grpo.TrainSettings(steps=2, prompts_per_step=2, group_size=4),
        sampling=grpo.SamplingParams(max_tokens=8),
        output=tmp_path / "run",
    )


def test_function_async_model_and_server_in_one_run(run: grpo.Run) -> None:
    result = grpo.train(run)
    assert len(result.history) == 2
    for step in result.history:
        for name in ("brevity", "waits", "reward-model", "reward-model-server"):
            assert math.isfinite(step[f"reward/{name}/mean"]), name
        # One model, asked here and over HTTP.
        here, there = step["reward/reward-model/mean"], step["reward/reward-model-server/mean"]
        assert here == pytest.approx(there, abs=1e-5)
        assert step["reward/reward-model/std"] > 0
        parts = step["reward/brevity/mean"] + step["reward/waits/mean"] + 0.5 * here
        assert step["reward/mean"] == pytest.approx(parts, abs=1e-5)
