"""Measuring what a checkpoint can do on held-out prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase, Qwen3ForCausalLM

from grpo_core.demo.chain import answered
from grpo_core.types import Prompt

MAX_NEW_TOKENS = 40
"""A reasoned completion of 4 operations is 28 tokens and its end token."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What the completions of some prompts amount to, as shares in 0..1."""

    accuracy: float
    """The right digit in the answer tag."""
    reasoning: float
    """Anything but an empty pair of think tags at the start."""
    prompts: int
    """How many were measured, one completion each."""


def prompt_token_ids(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]
) -> list[list[int]]:
    """One list of token ids per prompt, up to and including the start of the assistant's turn."""
    chats = [_messages(prompt) for prompt in prompts]
    ids = tokenizer.apply_chat_template(chats, add_generation_prompt=True, return_dict=False)
    return cast("list[list[int]]", ids)


def _messages(prompt: Prompt) -> list[dict[str, str]]:
    if isinstance(prompt.content, str):
        raise TypeError(f"prompt {prompt.id!r} is plain text; the chat template needs messages")
    return [dict(message) for message in prompt.content]


@torch.no_grad()
def measure(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    greedy: bool = False,
) -> Measurement:
    """One completion per prompt, sampled at temperature 1 from the whole vocabulary, or greedy.

    Draws from torch's global random number generator.
    """
    inputs = tokenizer.pad({"input_ids": prompt_token_ids(tokenizer, prompts)}, return_tensors="pt")
    was_training = model.training
    model.train(False)
    # transformers types generate() for a protocol of its own, which its own models do not match.
    sequences = model.generate(  # type: ignore[misc]
        **inputs, generation_config=_settings(tokenizer, greedy)
    )
    model.train(was_training)
    completions = tokenizer.batch_decode(
        sequences[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
    )
    right = [
        answered(completion) == prompt.columns["answer"]
        for completion, prompt in zip(completions, prompts, strict=True)
    ]
    reasoned = [not completion.startswith("<think></think>") for completion in completions]
    return Measurement(
        accuracy=sum(right) / len(right),
        reasoning=sum(reasoned) / len(reasoned),
        prompts=len(right),
    )


def _settings(tokenizer: PreTrainedTokenizerBase, greedy: bool) -> GenerationConfig:
    # Without top_k=0 transformers cuts at 50 tokens, which would flatter the policy: what is
    # measured is the distribution that GRPO samples from.
    sampling: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    return GenerationConfig(
        max_new_tokens=MAX_NEW_TOKENS,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **({} if greedy else sampling),
    )
