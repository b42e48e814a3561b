"""From a server's JSON to completions, or to a sentence about what is wrong with it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from grpo_core.types import Completion
from grpo_generator_vllm_server.errors import BadAnswerError
from grpo_generator_vllm_server.request import draws

if TYPE_CHECKING:
    from grpo_core.types import GenerateRequest

MINUS_INFINITY = -9999.0
"""What vLLM puts in place of an infinite log-prob (JSON has none); no sampled token has it."""
_ROUNDING = 1e-3
"""How far above 0 a log-prob may be by rounding in 16 bits."""


def completions(
    answer: Any, request: GenerateRequest, index: int, *, vocabulary: int, server: object
) -> tuple[Completion, ...]:
    """The group of prompt ``index``.

    Raises:
        BadAnswerError: choices are missing, tokens are outside the vocabulary or past the end,
            log-probs are missing, not finite or above 0, or the prompt is not the one sent.
    """
    try:
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        numbers = [choice["index"] for choice in choices]
    except (KeyError, TypeError) as error:
        raise BadAnswerError(f"{server}: no completions in its answer: {_short(answer)}") from error
    due = draws(request)
    if numbers != list(range(due)):
        raise BadAnswerError(
            f"{server}: asked for {due} completions, it returned {len(choices)} "
            f"with indices {_short(numbers)}"
        )
    for choice in choices:
        echoed = choice.get("prompt_token_ids")
        if echoed is not None and tuple(echoed) != request.prompt_ids_P[index]:
            raise BadAnswerError(
                f"{server}: it completed another prompt than was sent: {len(echoed)} tokens, not "
                f"the {len(request.prompt_ids_P[index])} of prompt {index}"
            )
    found = tuple(_completion(choice, request, vocabulary, server) for choice in choices)
    return found * (request.group_size // due)


def _completion(
    choice: Any, request: GenerateRequest, vocabulary: int, server: object
) -> Completion:
    which = f"{server}: completion {choice['index']}"
    ids = choice.get("token_ids")
    logprobs = (choice.get("logprobs") or {}).get("token_logprobs")
    if not isinstance(ids, list) or not isinstance(logprobs, list):
        raise BadAnswerError(f"{which} has no token_ids or no log-probs: {_short(choice)}")
    most = request.sampling.max_tokens
    if not 1 <= len(ids) <= most or len(ids) != len(logprobs):
        raise BadAnswerError(
            f"{which} has {len(ids)} tokens and {len(logprobs)} log-probs; 1 to {most} of each "
            "are possible"
        )
    outside = [i for i in ids if type(i) is not int or not 0 <= i < vocabulary]
    if outside:
        raise BadAnswerError(
            f"{which} has token id {outside[0]!r}, but the policy's vocabulary has {vocabulary}; "
            "the server holds another model"
        )
    bad = [x for x in logprobs if not _is_logprob(x)]
    if bad:
        raise BadAnswerError(
            f"{which} has {len(bad)} log-probs that are none, the first {bad[0]!r}; the server's "
            "weights are damaged, or its kernels overflow"
        )
    ends = [at for at, i in enumerate(ids[:-1]) if i in request.eos_token_ids]
    if ends:
        raise BadAnswerError(
            f"{which} goes on after its end token {ids[ends[0]]}; the server ignored stop_token_ids"
        )
    reason = choice.get("finish_reason")
    if reason not in ("stop", "length"):
        raise BadAnswerError(f"{which} ended by {reason!r}; it is not a whole completion")
    finish: Literal["stop", "length"] = "stop" if reason == "stop" else "length"
    if finish == "length" and len(ids) < most:
        raise BadAnswerError(
            f"{which} was cut off at {len(ids)} of {most} tokens: the server's max_model_len is "
            "too small for its prompt"
        )
    return Completion(
        token_ids=tuple(ids),
        logprobs=tuple(min(float(x), 0.0) for x in logprobs),
        finish_reason=finish,
    )


def _is_logprob(value: Any) -> bool:
    # `bool` is an int, and None stands for NaN in some versions.
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and MINUS_INFINITY < value <= _ROUNDING


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 200 else text[:200] + "..."
