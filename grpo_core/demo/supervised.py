"""Supervised training on written demonstrations."""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase, Qwen3ForCausalLM, get_inverse_sqrt_schedule

from grpo_core.demo.arithmetic import ChainPrompts
from grpo_core.demo.chain import immediate_completion, reasoned_completion
from grpo_core.demo.measuring import prompt_token_ids
from grpo_core.types import Prompt

IGNORED = -100
"""The label that the cross entropy of transformers leaves out."""


@dataclass(frozen=True, kw_only=True)
class Demonstration:
    """A prompt and the completion that should follow it, as text without the end token."""

    prompt: Prompt
    completion: str


def demonstrations(
    prompts: ChainPrompts, *, immediate_share: float, seed: int
) -> Iterator[Demonstration]:
    """Endless demonstrations on shuffled prompts; that share of them answers without reasoning."""
    generator = random.Random(seed)
    while True:
        for index in generator.sample(range(len(prompts)), len(prompts)):
            chain = prompts.chain(index)
            immediate = generator.random() < immediate_share
            write = immediate_completion if immediate else reasoned_completion
            yield Demonstration(prompt=prompts[index], completion=write(chain))


def labelled_batch(
    tokenizer: PreTrainedTokenizerBase, shown: Sequence[Demonstration]
) -> dict[str, torch.Tensor]:
    """`input_ids`, `attention_mask` and `labels`, each [demonstrations, longest], padded right.

    Only completions and their end tokens are labelled.
    """
    prompts = prompt_token_ids(tokenizer, [demonstration.prompt for demonstration in shown])
    completions = tokenizer([demonstration.completion for demonstration in shown])["input_ids"]
    rows, labels = [], []
    for prompt, completion in zip(prompts, completions, strict=True):
        target = [*completion, tokenizer.eos_token_id]
        rows.append([*prompt, *target])
        labels.append([IGNORED] * len(prompt) + target)
    return {
        "input_ids": _padded(rows, tokenizer.pad_token_id),
        "attention_mask": _padded([[1] * len(row) for row in rows], 0),
        "labels": _padded(labels, IGNORED),
    }


def _padded(rows: Sequence[list[int]], filler: int) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [filler] * (longest - len(row)) for row in rows])


def supervised_steps(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    source: Iterator[Demonstration],
    *,
    rows_per_step: int,
    learning_rate: float,
    warmup_steps: int,
    max_steps: int,
) -> Iterator[int]:
    """Train with AdamW, yielding the count of steps after each; the caller stops by leaving.

    The learning rate rises for `warmup_steps` and then falls with the inverse square root of the
    steps, which needs no planned end. RuntimeError for a loss that is not finite, and when the
    caller still wants more after `max_steps`.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    schedule = get_inverse_sqrt_schedule(optimizer, warmup_steps)
    model.train()
    for step in range(1, max_steps + 1):
        batch = labelled_batch(tokenizer, [next(source) for _ in range(rows_per_step)])
        loss = model(**batch).loss
        if not math.isfinite(loss.item()):
            raise RuntimeError(f"the supervised loss became {loss.item()} at step {step}")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        yield step
    raise RuntimeError(f"the goal of this stage was not reached within {max_steps} steps")
