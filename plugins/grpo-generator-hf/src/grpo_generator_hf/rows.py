"""Which completions are decoded, in which order, and how many at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from grpo_core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from grpo_core.types import GenerateRequest, Turn, TurnRequest
    from grpo_generator_hf.config import HFConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One completion, or one turn of one, to be sampled; told apart by ``prompt`` and ``sample``.

    Example: ``Row(prompt=2, sample=5, prompt_ids=(1, 5), key=2, max_tokens=64)``.
    """

    prompt: int
    """Position in ``GenerateRequest.prompt_ids_P``; of a turn, its ``key``."""
    sample: int
    """Position within the group."""
    prompt_ids: tuple[int, ...] = field(compare=False)
    """What it continues."""
    key: int = field(compare=False)
    """The prompt's part of the key of every random number."""
    max_tokens: int = field(compare=False)


Unit = tuple[Row, ...]
"""Rows that continue the same tokens and are admitted together."""


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


def turn_room(request: TurnRequest, config: HFConfig) -> Room:
    """The same for turns, each of which may come to need ``request.longest`` positions.

    Keys and values of what rows have in common are copied into each: it is much in the first turn
    only, and a prompt held apart from its single row would cost a second product per step.

    Raises:
        ConfigError: ``tokens_in_cache`` is less than a single turn may need.
    """
    if request.longest > config.tokens_in_cache:
        raise ConfigError(
            f"generator.tokens_in_cache is {config.tokens_in_cache}, but one rollout may need "
            f"{request.longest} positions (prompt + max_tokens); raise it, or lower "
            "sampling.max_tokens"
        )
    return Room(
        rows=config.rows_at_once,
        positions=config.tokens_in_cache,
        row_positions=request.longest,
        prompt_positions=0,
    )


def admission_order(request: GenerateRequest, room: Room) -> list[Unit]:
    """Rows of one prompt that are admitted together: whole groups, unless none would ever fit.

    Longest prompts first: the first ones say how large the buffers are, and what runs out of
    memory does so at once.
    """
    prompts = list(zip(request.prompt_ids_P, request.prompt_keys_P, strict=True))
    return [
        unit
        for prompt in sorted(range(len(prompts)), key=lambda p: (-len(prompts[p][0]), p))
        for unit in _parts(
            [
                Row(
                    prompt=prompt,
                    sample=sample,
                    prompt_ids=prompts[prompt][0],
                    key=prompts[prompt][1],
                    max_tokens=request.sampling.max_tokens,
                )
                for sample in range(request.group_size)
            ],
            room,
        )
    ]


def turn_units(turns: Sequence[Turn], room: Room) -> list[Unit]:
    """Turns as rows; those that continue the same tokens together, as a group's first turns do."""
    same: dict[tuple[int, ...], list[Row]] = defaultdict(list)
    for turn in turns:
        same[turn.prompt_ids].append(
            Row(
                prompt=turn.key,
                sample=turn.sample,
                prompt_ids=turn.prompt_ids,
                key=turn.key,
                max_tokens=turn.max_tokens,
            )
        )
    longest_first = sorted(same.values(), key=lambda rows: -len(rows[0].prompt_ids))
    return [unit for rows in longest_first for unit in _parts(rows, room)]


def _parts(rows: Sequence[Row], room: Room) -> list[Unit]:
    size = min(len(rows), room.rows_of_one_prompt)
    return [tuple(rows[first : first + size]) for first in range(0, len(rows), size)]
