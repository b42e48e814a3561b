"""The least a step can cost on this machine: operations and bytes at measured rates.

Every prompt once, every completion token once, nothing for groups without signal in the update;
element-wise work, sampling and Python cost nothing. No program reaches it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """What the model's own files say."""

    backbone: int
    """Parameters that every token passes through: all but embeddings and norms."""
    head: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    element_bytes: int

    @property
    def weight_bytes(self) -> int:
        """Read by every decode step."""
        return (self.backbone + self.head) * self.element_bytes


def sizes(model: Path, device: str) -> Sizes:
    """Count the parameters of a Qwen3 with a tied head."""
    c = json.loads((model / "config.json").read_text("utf-8"))
    dim = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
    attention = (2 * c["num_attention_heads"] + 2 * c["num_key_value_heads"]) * dim
    per_layer = c["hidden_size"] * (attention + 3 * c["intermediate_size"])
    return Sizes(
        backbone=c["num_hidden_layers"] * per_layer,
        head=c["vocab_size"] * c["hidden_size"],
        layers=c["num_hidden_layers"],
        heads=c["num_attention_heads"],
        kv_heads=c["num_key_value_heads"],
        head_dim=dim,
        element_bytes=2 if device == "cuda" else 4,
    )


def floor(
    size: Sizes, rows: list[dict[str, Any]], prompt_tokens: list[int], rate: dict[str, float]
) -> dict[str, float]:
    """Seconds of one step.

    Args:
        rows: the step's prompts, with ``lengths_G`` and ``rewards_G``.
        prompt_tokens: the length of each.
        rate: from ``machine.rates``.

    Returns:
        ``sample`` and ``update``.
    """
    groups = [(n, row["lengths_G"]) for n, row in zip(prompt_tokens, rows, strict=True)]
    signal = [
        group for group, row in zip(groups, rows, strict=True) if len(set(row["rewards_G"])) > 1
    ]
    return {
        "sample": _prefill(size, groups, rate) + _decode(size, groups, rate),
        "update": _train(size, signal, rate) + _optimizer(size, rate),
    }


def _prefill(size: Sizes, groups: list[Any], rate: dict[str, float]) -> float:
    operations = sum(
        2 * size.backbone * prompt + 2 * size.head + _attention(size, prompt, 0)
        for prompt, _ in groups
    )
    return float(operations / rate["flops"])


def _decode(size: Sizes, groups: list[Any], rate: dict[str, float]) -> float:
    """One token of all unfinished rows at a time: weights and keys are read, or it computes."""
    position = 2 * size.kv_heads * size.head_dim * size.layers * size.element_bytes
    seconds = 0.0
    # The first token comes with the prompt.
    for t in range(1, max(n for _, lengths in groups for n in lengths)):
        going = [(prompt, sum(n > t for n in lengths)) for prompt, lengths in groups]
        count = sum(n for _, n in going)
        read = size.weight_bytes + position * sum((p + n * t) for p, n in going if n)
        operations = 2 * (size.backbone + size.head) * count + sum(
            4 * size.heads * size.head_dim * size.layers * n * (p + t) for p, n in going
        )
        seconds += max(read / rate["bytes"], operations / rate["flops"])
    return seconds


def _train(size: Sizes, groups: list[Any], rate: dict[str, float]) -> float:
    """Forward once and backward twice: 6 operations per parameter and token."""
    operations = 0.0
    for prompt, lengths in groups:
        # The last token predicts nothing: it is no input.
        inputs = prompt + sum(n - 1 for n in lengths)
        operations += 6 * size.backbone * inputs + 6 * size.head * sum(lengths)
        operations += 3 * _attention(size, prompt, 0)
        operations += 3 * sum(_attention(size, n - 1, prompt) for n in lengths)
    return operations / rate["flops"]


def _attention(size: Sizes, tokens: int, before: int) -> float:
    """Forward, causal: scores and their product with the values, 2 operations each."""
    pairs = tokens * before + tokens * (tokens + 1) / 2
    return 4 * size.heads * size.head_dim * size.layers * pairs


def _optimizer(size: Sizes, rate: dict[str, float]) -> float:
    """AdamW in float32: read weight, gradient and two moments; write all but the gradient."""
    return 7 * 4 * (size.backbone + size.head) / rate["bytes_uncached"]
