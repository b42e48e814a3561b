"""A tiny real Qwen3 policy, full or with LoRA, and rollouts for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from grpo_core.demo.tokenizer import train_tokenizer
from grpo_core.policy import Policy
from grpo_core.settings import LoraSettings, ModelSettings
from grpo_core.types import Prompt, Rollout, Span

TEMPERATURE = 0.7


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-qwen3"
    tokenizer = train_tokenizer(["<think>1+1=2</think><answer>2</answer>"])
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def make_policy(base: Path) -> Callable[..., Policy]:
    def make(*, lora: bool = False, gradient_checkpointing: bool = False) -> Policy:
        settings = ModelSettings(
            path=str(base),
            lora=LoraSettings(r=4) if lora else None,
            gradient_checkpointing=gradient_checkpointing,
        )
        policy = Policy(settings)
        policy.prepare(optimizer_steps=1, temperature=TEMPERATURE, tokens_per_microbatch=24)
        return policy

    return make


@pytest.fixture
def rollouts() -> list[Rollout]:
    """Ragged: one without action tokens, one with text inserted in between."""

    def rollout(sample: int, *spans: Span) -> Rollout:
        prompt = Prompt(id="0", content="x")
        return Rollout(
            prompt=prompt,
            prompt_ids=(5, 9, 31),
            group=0,
            sample=sample,
            spans=spans,
            text="",
            finish_reason="stop",
        )

    def sampled(*ids: int) -> Span:
        return Span(token_ids=ids, logprobs=(-1.0,) * len(ids), policy_version=0)

    tool = Span(token_ids=(40, 41), logprobs=None, policy_version=None)
    return [
        rollout(0, sampled(7, 60, 100, 2)),
        rollout(1),
        rollout(2, sampled(8), tool, sampled(90, 2)),
        rollout(3, sampled(*range(50, 62))),
    ]


@pytest.fixture
def expected(base: Path, rollouts: list[Rollout]) -> list[torch.Tensor]:
    """The starting checkpoint's log-probs, one rollout at a time, by transformers alone."""
    model = Qwen3ForCausalLM.from_pretrained(base, dtype=torch.float32)
    found = []
    for rollout in rollouts:
        ids = torch.tensor([*rollout.prompt_ids, *rollout.token_ids])
        with torch.no_grad():
            logp = (model(ids[None]).logits[0] / TEMPERATURE).log_softmax(-1)
        start = len(rollout.prompt_ids)
        rows = [logp[start + p - 1, rollout.token_ids[p]] for p in rollout.action_positions]
        found.append(torch.stack(rows) if rows else torch.zeros(0))
    return found
