"""What crosses the boundary between an environment and a generator when rollouts have turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grpo_core.settings import SamplingParams
    from grpo_core.types.generation import Completion


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """The stretch of one rollout that is to be sampled next.

    Example: ``Turn(prompt_ids=(1, 5, 31, 7, 2, 40, 41), key=0, sample=3, number=1,
    max_tokens=64)``.
    """

    prompt_ids: tuple[int, ...]
    """Everything before it: the prompt, and what there is of the completion."""
    key: int
    """As in ``GenerateRequest.prompt_keys_P``: the prompt's position over all ranks."""
    sample: int
    """Position within the group."""
    number: int
    """Turns of this rollout that were sampled before."""
    max_tokens: int
    """In place of ``SamplingParams.max_tokens``; at least 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TurnRequest:
    """Turns of many rollouts, handed out while others are being sampled.

    A random number is keyed by (seed, step, ``Turn.key``, ``Turn.sample``, position in the whole
    sequence), so that a rollout depends neither on when its turns come nor on what is sampled
    beside them.
    """

    step: int
    seed: int
    group_size: int
    rollouts: int
    """How many rollouts there are; never more turns at a time."""
    longest: int
    """No turn has more tokens than this, ``prompt_ids`` and ``max_tokens`` together."""
    sampling: SamplingParams
    eos_token_ids: tuple[int, ...]
    take: Callable[[bool], Sequence[Turn]]
    """``take(wait)``: the turns that have become ready, each once. With ``wait`` it blocks until
    there is one, and none means that there will be no more; without, none means not yet. Called
    by whoever iterates, in the same thread, after everything that was sampled has been yielded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampledTurn:
    """A turn and what was sampled for it."""

    turn: Turn
    completion: Completion
    policy_version: int
    """The version that the generator held while sampling."""
