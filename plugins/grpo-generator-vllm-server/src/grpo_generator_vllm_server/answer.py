"""From a server's JSON to tokens and log-probs, or to a sentence about what is wrong with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from grpo_core.types import Completion
from grpo_generator_vllm_server.errors import BadAnswerError

if TYPE_CHECKING:
    from grpo_generator_vllm_server.request import Draw

MINUS_INFINITY = -9999.0
"""What vLLM puts in place of an infinite log-prob (JSON has none); no sampled token has it."""
ONCE = -60.0
"""Log-prob of drawing tokens a second time, below which it was no chance: once in 1e26."""
_ROUNDING = 1e-3
"""How far above 0 a log-prob may be by rounding in 16 bits."""

Finish = Literal["stop", "length"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """A completion, or its beginning.

    Example: ``Piece(token_ids=(31, 7), logprobs=(-0.1, -2.3), finish=None)``.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: Finish | None
    """``None``: it was interrupted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Expected:
    """What an answer is compared with.

    Example: ``Expected(vocabulary=32000, eos_token_ids=(2,), may_be_cut=False)``.
    """

    vocabulary: int
    eos_token_ids: tuple[int, ...]
    may_be_cut: bool
    """Whether whoever asked has also interrupted."""
    ends_by_token: bool = False
    """Whether nothing but an end token stops a completion: no stop string, no grammar."""


def pieces(found: Any, draw: Draw, expected: Expected, *, server: object) -> list[Piece]:
    """One for each completion that was asked for, in order.

    Raises:
        BadAnswerError: choices are missing, tokens are outside the vocabulary or past the end,
            log-probs are missing, not finite or above 0, the prompt is not the one sent, or one
            completion comes again that no chance would draw twice.
    """
    try:
        choices = sorted(found["choices"], key=lambda choice: choice["index"])
        numbers = [choice["index"] for choice in choices]
    except (KeyError, TypeError) as error:
        raise BadAnswerError(f"{server}: no completions in its answer: {_short(found)}") from error
    if numbers != list(range(draw.count)):
        raise BadAnswerError(
            f"{server}: asked for {draw.count} completions, it returned {len(choices)} "
            f"with indices {_short(numbers)}"
        )
    for choice in choices:
        echoed = choice.get("prompt_token_ids")
        if echoed is not None and tuple(echoed) != draw.token_ids:
            raise BadAnswerError(
                f"{server}: it completed another prompt than was sent: {len(echoed)} tokens, not "
                f"the {len(draw.token_ids)} that were"
            )
    drawn = [_piece(choice, draw.max_tokens, expected, server) for choice in choices]
    _require_drawn_apart(drawn, server)
    return drawn


def _require_drawn_apart(drawn: Sequence[Piece], server: object) -> None:
    """Equal completions have equal rewards: a group of copies teaches nothing, and says nothing."""
    seen: dict[tuple[int, ...], int] = {}
    for number, piece in enumerate(drawn):
        first = seen.setdefault(piece.token_ids, number)
        if first != number and sum(piece.logprobs) < ONCE:
            raise BadAnswerError(
                f"{server}: completions {first} and {number} of a prompt are the same "
                f"{len(piece.token_ids)} tokens, which by their own log-probs happens once in "
                f"e^{-sum(piece.logprobs):.0f} times: it ignores seeds, or copies answers"
            )


def whole(pieces: Sequence[Piece]) -> tuple[Completion, ...]:
    """The same, of calls that nobody has interrupted."""
    found = []
    for piece in pieces:
        assert piece.finish is not None
        found.append(
            Completion(
                token_ids=piece.token_ids, logprobs=piece.logprobs, finish_reason=piece.finish
            )
        )
    return tuple(found)


def _piece(choice: Any, most: int, expected: Expected, server: object) -> Piece:
    which = f"{server}: completion {choice['index']}"
    ids = choice.get("token_ids")
    logprobs = (choice.get("logprobs") or {}).get("token_logprobs")
    reason = choice.get("finish_reason")
    cut = reason == "abort" and expected.may_be_cut
    if cut and not ids:
        return Piece(token_ids=(), logprobs=(), finish=None)
    if not isinstance(ids, list) or not isinstance(logprobs, list):
        raise BadAnswerError(f"{which} has no token_ids or no log-probs: {_short(choice)}")
    if not 1 <= len(ids) <= most or len(ids) != len(logprobs):
        raise BadAnswerError(
            f"{which} has {len(ids)} tokens and {len(logprobs)} log-probs; 1 to {most} of each "
            "are possible"
        )
    outside = [i for i in ids if type(i) is not int or not 0 <= i < expected.vocabulary]
    if outside:
        raise BadAnswerError(
            f"{which} has token id {outside[0]!r}, but the policy's vocabulary has "
            f"{expected.vocabulary}; the server holds another model"
        )
    bad = [x for x in logprobs if not _is_logprob(x)]
    if bad:
        raise BadAnswerError(
            f"{which} has {len(bad)} log-probs that are none, the first {bad[0]!r}; the server's "
            "weights are damaged, or its kernels overflow"
        )
    ends = [at for at, i in enumerate(ids[:-1]) if i in expected.eos_token_ids]
    if ends:
        raise BadAnswerError(
            f"{which} goes on after its end token {ids[ends[0]]}; the server ignored stop_token_ids"
        )
    if not cut and reason not in ("stop", "length"):
        raise BadAnswerError(f"{which} ended by {reason!r}; it is not a whole completion")
    ended = ids[-1] in expected.eos_token_ids
    if reason == "stop" and expected.ends_by_token and not ended:
        raise BadAnswerError(
            f"{which} stopped at token {ids[-1]}, which is none of the policy's end tokens "
            f"{list(expected.eos_token_ids)}; the server stops by rules of its own"
        )
    if reason == "length" and len(ids) < most:
        raise BadAnswerError(
            f"{which} was cut off at {len(ids)} of {most} tokens: the server's max_model_len is "
            "too small for its prompt"
        )
    if reason == "length" and ended:
        raise BadAnswerError(
            f"{which} ends with its end token {ids[-1]} and says that it was cut off"
        )
    return Piece(
        token_ids=tuple(ids),
        logprobs=tuple(min(float(x), 0.0) for x in logprobs),
        finish=None if cut else reason,
    )


def _is_logprob(value: Any) -> bool:
    # `bool` is an int, and None stands for NaN in some versions.
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and MINUS_INFINITY < value <= _ROUNDING


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 200 else text[:200] + "..."
