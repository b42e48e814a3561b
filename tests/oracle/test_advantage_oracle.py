"""Advantages of whole TRL trainers, sampling and all, from rewards of our choosing.

TRL computes them in float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

import grpo_losses
from grpo_core.protocols import Advantage
from grpo_core.types import AdvantageRequest

pytestmark = pytest.mark.oracle

GROUP, GROUPS, PROVIDERS = 4, 5, 3
WEIGHTS = [1.0, 0.3, -0.5]


def rewards(seed: int, missing: float) -> torch.Tensor:
    """``(B, F)``, with NaN, with a group of equal rewards and with one that nobody scored."""
    rng = torch.Generator().manual_seed(seed)
    found = torch.randn(GROUP * GROUPS, PROVIDERS, generator=rng)
    found[torch.rand(found.shape, generator=rng) < missing] = torch.nan
    found[:GROUP] = torch.tensor([0.5, 0.25, 1.0])
    if missing:
        found[GROUP : 2 * GROUP] = torch.nan
    return found


def trl_advantages(trainer_class: Any, config: Any, model: Path, found: torch.Tensor) -> Any:
    class Fixed(trainer_class):  # type: ignore[misc]
        def _calculate_rewards(self, *_: Any, **__: Any) -> torch.Tensor:
            return found

    def nothing(completions: list[str], **_: Any) -> list[float]:
        return [0.0 for _ in completions]

    tokenizer = AutoTokenizer.from_pretrained(model)
    prompts = [{"prompt": f"{i // GROUP} + 1 ="} for i in range(len(found))]
    trainer = Fixed(
        model=AutoModelForCausalLM.from_pretrained(model),
        reward_funcs=[nothing] * PROVIDERS,
        args=config,
        train_dataset=Dataset.from_list(prompts),
        processing_class=tokenizer,
    )
    trainer.model.train()
    return trainer._generate_and_score_completions(prompts)["advantages"]


def config(make: type, folder: Path, **options: Any) -> Any:
    return make(
        output_dir=str(folder),
        per_device_train_batch_size=GROUP * GROUPS,
        num_generations=GROUP,
        max_completion_length=4,
        reward_weights=WEIGHTS,
        report_to=[],
        use_cpu=True,
        bf16=False,
        **options,
    )


def agree(advantage: Advantage, found: torch.Tensor, expected: torch.Tensor) -> None:
    result = advantage(
        AdvantageRequest(
            rewards_F_B=found.T.double(),
            weights_F=torch.tensor(WEIGHTS).double(),
            group_B=torch.arange(len(found)) // GROUP,
            action_count_B=torch.ones(len(found), dtype=torch.int64),
        )
    )
    assert result.advantages_B is not None
    assert result.advantages_B.any()
    # Equal rewards: exactly 0 here, rounding over 1e-4 in TRL.
    torch.testing.assert_close(result.advantages_B.float(), expected, rtol=2e-5, atol=2e-3)
    moving = slice(GROUP, None)
    torch.testing.assert_close(
        result.advantages_B.float()[moving], expected[moving], rtol=2e-5, atol=2e-5
    )


@pytest.mark.parametrize("missing", [0.0, 0.3])
@pytest.mark.parametrize(
    ("advantage", "options"),
    [
        ("GroupAdvantage", {"scale_rewards": "group"}),
        ("BatchAdvantage", {"scale_rewards": "batch"}),
        ("UnscaledAdvantage", {"scale_rewards": "none"}),
        ("GdpoAdvantage", {"multi_objective_aggregation": "normalize_then_sum"}),
    ],
)
def test_grpo_trainer(
    advantage: str, options: dict[str, Any], missing: float, tiny_model: Path, tmp_path: Path
) -> None:
    found = rewards(1, missing)
    expected = trl_advantages(
        GRPOTrainer, config(GRPOConfig, tmp_path, **options), tiny_model, found
    )
    agree(getattr(grpo_losses, advantage)(), found, expected)


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_rloo_trainer(scale: bool, missing: float, tiny_model: Path, tmp_path: Path) -> None:
    found = rewards(2, missing)
    options = config(RLOOConfig, tmp_path, normalize_advantages=scale, beta=0.0)
    expected = trl_advantages(RLOOTrainer, options, tiny_model, found)
    advantage = grpo_losses.RlooAdvantage(grpo_losses.LeaveOneOutConfig(scale=scale))
    agree(advantage, found, expected)
