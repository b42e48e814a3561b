"""Which completions are decoded, in which order, and how many at once."""

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Room:
    """What fits into memory at once, for the prompts of one request."""

    rows: int
    positions: int
    row_positions: int
    """What one row may come to need of its own."""
    prompt_positions: int
    """What a prompt needs for all of its rows together; 0 where every row holds it itself."""

    def fits(self, rows: int, prompts: int) -> bool:
        needed = rows * self.row_positions + prompts * self.prompt_positions
        return rows <= self.rows and needed <= self.positions

    @property
    def rows_of_one_prompt(self) -> int:
        left = self.positions - self.prompt_positions
        return min(self.rows, left // self.row_positions)


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


def room(request: GenerateRequest, config: HFConfig, *, shared: bool) -> Room:
    """How much of the request is decoded at once.

    Args:
        shared: whether the rows of a prompt hold its keys and values together.

    Raises:
        ConfigError: ``tokens_in_cache`` is less than a single completion may need.
    """
    longest = max(map(len, request.prompt_ids_P), default=0)
    max_tokens = request.sampling.max_tokens
    if longest + max_tokens > config.tokens_in_cache:
        raise ConfigError(
            f"generator.tokens_in_cache is {config.tokens_in_cache}, but one completion may need "
            f"{longest + max_tokens} positions (prompt + max_tokens); raise it, or lower "
            "sampling.max_tokens"
        )
    return Room(
        rows=config.rows_at_once,
        positions=config.tokens_in_cache,
        row_positions=max_tokens if shared else longest + max_tokens,
        prompt_positions=longest if shared else 0,
    )


def admission_order(request: GenerateRequest, room: Room) -> list[tuple[Row, ...]]:
    """Rows of one prompt that are admitted together: whole groups, unless none would ever fit.

    Longest prompts first: the first ones say how large the buffers are, and what runs out of
    memory does so at once.
    """
    lengths = [len(ids) for ids in request.prompt_ids_P]
    at_once = min(request.group_size, room.rows_of_one_prompt)
    return [
        tuple(
            Row(prompt=prompt, sample=sample)
            for sample in range(first, min(first + at_once, request.group_size))
        )
        for prompt in sorted(range(len(lengths)), key=lambda p: (-lengths[p], p))
        for first in range(0, request.group_size, at_once)
    ]
