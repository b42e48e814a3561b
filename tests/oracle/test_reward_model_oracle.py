"""A reward model's scores against those that TRL's trainer computes with the same model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Qwen3Config,
    Qwen3ForSequenceClassification,
)
from trl import GRPOConfig, GRPOTrainer

from grpo_core.types import Prompt, Rollout, ScoreRequest, Span
from grpo_reward_model import RewardModel, RewardModelConfig

pytestmark = pytest.mark.oracle

TEMPLATE = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}\n{% endfor %}"
CASES = [
    ("1+1=", "2"),
    ("What is it?", "<answer>7</answer>" * 5),
    ("2+2=", ""),
    ("x", "<think>so</think>"),
]


@pytest.fixture(scope="module")
def reward_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "reward"
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        initializer_range=0.3,
        num_labels=1,
    )
    Qwen3ForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("conversational", [False, True], ids=["text", "conversation"])
def test_scores(conversational: bool, tiny_model: Path, reward_model: Path, tmp_path: Path) -> None:
    def form(role: str, text: str) -> Any:
        return [{"role": role, "content": text}] if conversational else text

    prompts = [form("user", prompt) for prompt, _ in CASES]
    completions = [form("assistant", text) for _, text in CASES]
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(tiny_model),
        reward_funcs=str(reward_model),
        args=GRPOConfig(
            output_dir=str(tmp_path),
            per_device_train_batch_size=len(CASES),
            num_generations=2,
            report_to=[],
            use_cpu=True,
            bf16=False,
        ),
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
        processing_class=AutoTokenizer.from_pretrained(tiny_model),
    )
    inputs = [{"prompt": prompt} for prompt in prompts]
    expected = trainer._calculate_rewards(inputs, prompts, completions, [[1]] * len(CASES))

    rollouts = tuple(
        Rollout(
            prompt=Prompt(id=str(i), content=p if isinstance(p, str) else tuple(p)),
            prompt_ids=(1,),
            group=i,
            sample=0,
            spans=(Span(token_ids=(1,), logprobs=(-1.0,), policy_version=0),),
            text=text,
            finish_reason="stop",
        )
        for i, (p, (_, text)) in enumerate(zip(prompts, CASES, strict=True))
    )
    provider = RewardModel(RewardModelConfig(path=str(reward_model), tokens_per_batch=40))
    found = [o.value for o in provider.score(ScoreRequest(step=0, rollouts_B=rollouts))]
    assert max(found) - min(found) > 0.1, "equal scores would compare nothing"
    torch.testing.assert_close(torch.tensor([found]).T, expected.cpu(), rtol=1e-5, atol=1e-5)
