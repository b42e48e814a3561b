"""What is asked of vLLM for one prompt. Nothing is left to the server's own defaults."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from grpo_core.errors import ConfigError

if TYPE_CHECKING:
    from grpo_core.types import GenerateRequest, Turn, TurnRequest


@dataclass(frozen=True, kw_only=True, slots=True)
class Draw:
    """One call: ``count`` ways to go on from some tokens.

    Example: ``Draw(token_ids=(5, 9), count=8, seed=12, max_tokens=64)``.
    """

    token_ids: tuple[int, ...]
    count: int
    seed: int
    """Of the first; vLLM gives number ``i`` the seed plus ``i``."""
    max_tokens: int


def prompt_seed(seed: int, step: int, key: int) -> int:
    """Of one prompt's group, in [0, 2**62): equal wherever and with whatever it is sampled.

    vLLM gives sample ``i`` of the group the seed plus ``i``, so seeds must not be neighbours.
    """
    return _hashed(f"{seed} {step} {key}")


def seed_after(seed: int, tokens: int) -> int:
    """Of a completion that goes on after so many tokens. Its own seed would draw the numbers of
    its first tokens once more."""
    return _hashed(f"{seed} after {tokens}") if tokens else seed


def draws(request: GenerateRequest) -> int:
    """How many completions to ask for: at temperature 0 all are the same, and vLLM refuses more
    than one."""
    return request.group_size if request.sampling.temperature > 0 else 1


def first_draw(request: GenerateRequest, index: int) -> Draw:
    """The whole group of a prompt."""
    return Draw(
        token_ids=request.prompt_ids_P[index],
        count=draws(request),
        seed=prompt_seed(request.seed, request.step, request.prompt_keys_P[index]),
        max_tokens=request.sampling.max_tokens,
    )


def turn_draw(request: TurnRequest, turn: Turn) -> Draw:
    """One turn of one rollout. The first has the seed that it would have among its group; a later
    one, from where it stands in the sequence, another: it would draw the numbers of the first."""
    seed = prompt_seed(request.seed, request.step, turn.key) + turn.sample
    return Draw(
        token_ids=turn.prompt_ids,
        count=1,
        seed=seed_after(seed, len(turn.prompt_ids)) if turn.number else seed,
        max_tokens=turn.max_tokens,
    )


def sampling_fields(request: GenerateRequest | TurnRequest, draw: Draw) -> dict[str, Any]:
    """How to draw, in the words of vLLM's ``SamplingParams``.

    Every setting is there: what is missing is filled from the model's
    ``generation_config.json``, which may hold a temperature or a repetition penalty.
    """
    sampling = request.sampling
    return {
        "n": draw.count,
        "seed": draw.seed,
        "max_tokens": draw.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "logprobs": 0,
        # The policy's end tokens and no others: the server's list comes from its own files.
        "ignore_eos": True,
        "stop_token_ids": list(request.eos_token_ids),
        "stop": list(sampling.stop),
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
    }


def body(
    request: GenerateRequest | TurnRequest,
    draw: Draw,
    *,
    model: str,
    structured_outputs: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """JSON for ``/v1/completions``."""
    found: dict[str, Any] = {
        "model": model,
        "prompt": list(draw.token_ids),
        **sampling_fields(request, draw),
        "return_token_ids": True,
        "add_special_tokens": False,
        "stream": False,
    }
    if structured_outputs is not None:
        found["structured_outputs"] = dict(structured_outputs)
    return found


def check(
    request: GenerateRequest, context_length: int | None, *, generator: str = "vllm-server"
) -> None:
    """Raises ``ConfigError`` or ``DataError`` for what no engine could do."""
    from grpo_core.errors import DataError

    if any(request.inputs_P):
        raise ConfigError(f"generator {generator!r} samples text only; prompts have other inputs")
    _check_stop(request)
    for ids in request.prompt_ids_P:
        if not ids:
            raise DataError("a prompt is empty; a model needs at least one token to go on from")
        total = len(ids) + request.sampling.max_tokens
        if context_length is not None and total > context_length:
            raise DataError(
                f"a prompt of {len(ids)} tokens and sampling.max_tokens "
                f"{request.sampling.max_tokens} are {total} tokens; the model's context is "
                f"{context_length}"
            )


def check_turns(request: TurnRequest, most: int | None) -> None:
    """Raises ``ConfigError`` or ``DataError`` for what no engine could do.

    Args:
        most: tokens that the model or the engine has room for, ``None`` where nothing bounds it.
    """
    from grpo_core.errors import DataError

    _check_stop(request)
    if most is not None and request.longest > most:
        raise DataError(
            f"rollouts may come to {request.longest} tokens, but there is room for {most}; lower "
            "sampling.max_tokens, or leave long prompts out"
        )


def _check_stop(request: GenerateRequest | TurnRequest) -> None:
    if "" in request.sampling.stop:
        raise ConfigError("sampling.stop holds an empty string, which would stop everything")


def _hashed(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 2
