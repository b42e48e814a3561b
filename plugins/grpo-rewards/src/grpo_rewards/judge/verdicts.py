"""What a reply of the judge means. A reply that is not exactly what was asked for means nothing."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from grpo_rewards.judge.config import Criterion

FENCE = re.compile(r"```(?:json)?[ \t]*\n(.*)\n```", re.DOTALL)


class MalformedVerdictError(ValueError):
    """The judge replied something else than what it was asked for."""


def score_of(reply: str, scale: tuple[int, int]) -> float:
    """A grade, 0.0 for the worst and 1.0 for the best of the scale.

    Raises:
        MalformedVerdictError: no number, or one beyond the scale.
    """
    worst, best = scale
    score = _field(reply, "score")
    if isinstance(score, bool) or not isinstance(score, (int, float)):
        raise MalformedVerdictError(f"score is {score!r}, not a number")
    if not (math.isfinite(score) and worst <= score <= best):
        raise MalformedVerdictError(f"score is {score}, not within {worst} to {best}")
    return (score - worst) / (best - worst)


def rubric_of(reply: str, criteria: Sequence[Criterion]) -> float:
    """The points of the criteria that are met, over all positive points, within 0.0 to 1.0 (as in
    HealthBench, arXiv 2505.08775).

    Raises:
        MalformedVerdictError: not one true or false per criterion.
    """
    met = _field(reply, "met")
    if not isinstance(met, list) or not all(isinstance(entry, bool) for entry in met):
        raise MalformedVerdictError(f"met is {met!r}, not a list of true and false")
    if len(met) != len(criteria):
        raise MalformedVerdictError(f"met has {len(met)} entries for {len(criteria)} criteria")
    points = sum(c.weight for c, is_met in zip(criteria, met, strict=True) if is_met)
    return min(1.0, max(0.0, points / sum(c.weight for c in criteria if c.weight > 0)))


def pairwise_of(reply: str) -> float:
    """1.0 if the first answer won, 0.0 if the second did, 0.5 for a tie.

    Raises:
        MalformedVerdictError: another winner.
    """
    winner = _field(reply, "winner")
    values = {"A": 1.0, "B": 0.0, "tie": 0.5}
    if not isinstance(winner, str) or winner not in values:
        raise MalformedVerdictError(f"winner is {winner!r}, not A, B or tie")
    return values[winner]


def _field(reply: str, key: str) -> Any:
    """A field of the reply, which is one JSON object, perhaps behind ``<think>...</think>`` or in
    a fence.

    An object somewhere in the text does not do: a judge that quotes the answer quotes the verdict
    that a dishonest answer holds.
    """
    text = reply.strip()
    if text.startswith("<think>"):
        # The first end: what stands behind it must be the verdict alone, quotations included.
        text = text.partition("</think>")[2].strip()
    fenced = FENCE.fullmatch(text)
    try:
        verdict = json.loads(fenced[1] if fenced else text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise MalformedVerdictError(f"the reply is not one JSON object: {error}") from error
    if not isinstance(verdict, dict):
        raise MalformedVerdictError(f"the reply is a {type(verdict).__name__}, not an object")
    if key not in verdict or verdict.keys() - {key, "reason"}:
        raise MalformedVerdictError(f"the reply has the keys {sorted(verdict)}, not reason, {key}")
    return verdict[key]


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
