"""Rollouts of several turns from any generator: what an environment calls in place of one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from grpo_core.errors import PluginError
from grpo_core.protocols import TurnGenerator
from grpo_core.types import GenerateRequest, SampledTurn, Turn

if TYPE_CHECKING:
    from grpo_core.protocols import Generator
    from grpo_core.types import Completion, TurnRequest


TURN_KEYS = 2**32
"""More than there are rollouts."""


def sample_turns(generator: Generator, request: TurnRequest) -> Iterator[SampledTurn]:
    """Sample every turn that ``request.take`` hands out, in whatever order they finish.

    A ``TurnGenerator`` takes new turns while it samples. Any other is asked in waves: all turns
    that are ready, then, when these are finished, all that have become ready since.

    Raises:
        PluginError: a turn came back that nobody asked for, too long, or with too few log-probs.
    """
    if isinstance(generator, TurnGenerator):
        found = generator.sample_turns(request)
    else:
        found = waves(generator, request)
    for sampled in found:
        _check(sampled.turn, sampled.completion, generator)
        yield sampled


def waves(generator: Generator, request: TurnRequest) -> Iterator[SampledTurn]:
    """The turns of ``sample_turns`` by ``generate`` alone."""
    while wave := request.take(True):
        # One bound per request: rows of a wave may have different room left.
        by_room: dict[int, list[Turn]] = defaultdict(list)
        for turn in wave:
            by_room[turn.max_tokens].append(turn)
        for max_tokens, turns in sorted(by_room.items(), reverse=True):
            yield from _wave(generator, request, turns, max_tokens)


def _wave(
    generator: Generator, request: TurnRequest, turns: Sequence[Turn], max_tokens: int
) -> Iterator[SampledTurn]:
    waiting = dict(enumerate(turns))
    groups = generator.generate(
        GenerateRequest(
            step=request.step,
            seed=request.seed,
            prompt_ids_P=tuple(turn.prompt_ids for turn in turns),
            # Every turn is a prompt of its own here: with the group's key alone, all of its members
            # would draw the random numbers of member 0, and with the rollout's alone a generator
            # that does not count positions those of its first turn again.
            prompt_keys_P=tuple(
                turn.key * request.group_size + turn.sample + turn.number * TURN_KEYS
                for turn in turns
            ),
            group_size=1,
            sampling=request.sampling.model_copy(update={"max_tokens": max_tokens}),
            eos_token_ids=request.eos_token_ids,
        )
    )
    for group in groups:
        if group.index not in waiting or len(group.completions_G) != 1:
            raise PluginError(
                f"generator {_name(generator)} returned {len(group.completions_G)} completions for "
                f"group {group.index} of a request for one completion of each of {len(turns)} "
                "prompts; each prompt's position must come exactly once"
            )
        yield SampledTurn(
            turn=waiting.pop(group.index),
            completion=group.completions_G[0],
            policy_version=group.policy_version,
        )
    if waiting:
        raise PluginError(
            f"generator {_name(generator)} returned no completions for prompts {sorted(waiting)} "
            f"of {len(turns)} in step {request.step}; generate() must yield one group per prompt"
        )


def _check(turn: Turn, completion: Completion, generator: Generator) -> None:
    tokens, logprobs = len(completion.token_ids), len(completion.logprobs)
    what = f"turn {turn.number} of sample {turn.sample} of prompt {turn.key}"
    if logprobs != tokens:
        raise PluginError(
            f"generator {_name(generator)} returned {tokens} tokens but {logprobs} log-probs for "
            f"{what}; it must report one per sampled token"
        )
    if tokens > turn.max_tokens:
        raise PluginError(
            f"generator {_name(generator)} returned {tokens} tokens for {what}, which had room for "
            f"{turn.max_tokens}"
        )


def _name(generator: Generator) -> str:
    return f"{type(generator).__module__}.{type(generator).__qualname__}"
