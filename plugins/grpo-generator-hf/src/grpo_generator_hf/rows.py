"""Which completions are decoded together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from grpo_core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from grpo_core.types import GenerateRequest
    from grpo_generator_hf.config import HFConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One completion to be sampled. Example: ``Row(prompt=2, sample=5)``."""

    prompt: int
    """Position in ``GenerateRequest.prompt_ids_P``."""
    sample: int
    """Position within the group."""


def check(request: GenerateRequest, context_length: int | None) -> None:
    """Refuse what cannot be sampled, before anything is.

    Raises:
        DataError: an empty prompt, or one that leaves no room for ``max_tokens``.
        ConfigError: prompts with inputs other than tokens.
    """
    max_tokens = request.sampling.max_tokens
    for index, ids in enumerate(request.prompt_ids_P):
        if not ids:
            raise DataError(f"prompt {index} of {len(request.prompt_ids_P)} has no tokens")
        if context_length is not None and len(ids) + max_tokens > context_length:
            raise DataError(
                f"prompt {index} has {len(ids)} tokens; with sampling.max_tokens={max_tokens} "
                f"that is {len(ids) + max_tokens}, but the model's context is {context_length}: "
                "shorten or drop the prompt, or lower max_tokens"
            )
    names = sorted({name for inputs in request.inputs_P for name in inputs})
    if names:
        raise ConfigError(f"generator 'hf' samples from text only; the prompts also carry {names}")


def plan(request: GenerateRequest, config: HFConfig) -> list[tuple[Row, ...]]:
    """Batches within the bounds, prompts of like length together, groups whole where they fit.

    Raises:
        ConfigError: ``tokens_in_cache`` is less than a single completion may need.
    """
    lengths = [len(ids) for ids in request.prompt_ids_P]
    batches: list[tuple[Row, ...]] = []
    batch: list[Row] = []
    capacity = 0
    # Longest first: the first prompt of a batch says how wide all of its rows are.
    for prompt in sorted(range(len(lengths)), key=lambda p: (-lengths[p], p)):
        group = [Row(prompt=prompt, sample=sample) for sample in range(request.group_size)]
        while group:
            if not batch:
                capacity = _capacity(lengths[prompt] + request.sampling.max_tokens, config)
            elif len(batch) + len(group) > capacity:
                batches.append(tuple(batch))
                batch = []
                continue
            taken = capacity - len(batch)
            batch += group[:taken]
            group = group[taken:]
    if batch:
        batches.append(tuple(batch))
    return batches


def _capacity(width: int, config: HFConfig) -> int:
    if width > config.tokens_in_cache:
        raise ConfigError(
            f"generator.tokens_in_cache is {config.tokens_in_cache}, but one completion may need "
            f"{width} positions (prompt + max_tokens); raise it, or lower sampling.max_tokens"
        )
    return min(config.rows_per_batch, config.tokens_in_cache // width)
