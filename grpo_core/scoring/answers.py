"""What a provider returned or raised, as outcomes."""

from __future__ import annotations

import math
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_core.errors import RewardError
from grpo_core.rewards import as_outcomes
from grpo_core.types import Abstained, Failed, FailureKind, RewardOutcome, ScoreRequest, Value

LARGEST = 1e100
"""Of a reward: sums of squares of such numbers, over any batch, are finite."""


class DeadlineError(TimeoutError):
    """No answer within ``execution.timeout``."""


class LostError(RuntimeError):
    """The call ended with what ran it: a process that died, an event loop that was blocked."""


class ExitRaisedError(RuntimeError):
    """It raised ``SystemExit`` or ``KeyboardInterrupt``, which must not end the run unnamed."""


class RemoteError(RuntimeError):
    """It raised in a worker process; the text holds the traceback there."""

    def __init__(self, text: str, *, kind: FailureKind, final: bool, traceback: str) -> None:
        super().__init__(text)
        self.kind, self.final, self.traceback = kind, final, traceback


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """Example: ``Answer(outcomes_B=(Value(value=1.0),), columns={"gold": ["4"]}, metrics={})``."""

    outcomes_B: tuple[RewardOutcome, ...]
    columns: Mapping[str, Sequence[Any]]
    metrics: Mapping[str, Sequence[float]]


def answer_of(returned: object, request: ScoreRequest) -> Answer:
    """Check what a provider returned for ``request``.

    Raises:
        RewardError: it is no list of rewards, or of another number than was asked for.
    """
    outcomes, expected = as_outcomes(returned), len(request.rollouts_B)
    if len(outcomes) != expected:
        raise RewardError(f"returned {len(outcomes)} values for {expected} completions")
    return Answer(
        outcomes_B=tuple(map(_finite, outcomes)),
        columns=dict(request.log.columns),
        metrics={name: list(values) for name, values in request.log.metrics.items()},
    )


def joined(answers: Sequence[Answer]) -> Answer:
    """Answers about one rollout after the other as one about all; what one of them did not log is
    ``None`` there."""
    columns = {name for answer in answers for name in answer.columns}
    metrics = {name for answer in answers for name in answer.metrics}
    return Answer(
        outcomes_B=tuple(o for answer in answers for o in answer.outcomes_B),
        columns={
            name: [
                value
                for answer in answers
                for value in answer.columns.get(name, [None] * len(answer.outcomes_B))
            ]
            for name in sorted(columns)
        },
        metrics={n: [x for a in answers for x in a.metrics.get(n, ())] for n in sorted(metrics)},
    )


def failure_of(error: BaseException) -> Failed:
    """The failure that an exception of a call stands for."""
    if isinstance(error, RemoteError):
        return Failed(kind=error.kind, reason=str(error))
    # `RewardError` is our own verdict on what was returned; anything else was raised.
    if isinstance(error, RewardError):
        return Failed(kind="invalid", reason=str(error))
    kind: FailureKind = "timeout" if isinstance(error, TimeoutError) else "error"
    if isinstance(error, (DeadlineError, LostError, ExitRaisedError)):
        return Failed(kind=kind, reason=str(error))
    return Failed(kind=kind, reason=f"raised {type(error).__name__}: {error}")


def trace_of(error: BaseException) -> str:
    """The traceback of what a provider raised, from its own first line on: from behind the last
    line of ours, with what retries and event loops put between these. Empty for what was raised
    here, a verdict on what it returned."""
    if isinstance(error, ExitRaisedError) and error.__cause__ is not None:
        error = error.__cause__
    trace = passed = error.__traceback__
    while passed is not None:
        if _is_ours(passed.tb_frame.f_code.co_filename):
            trace = passed.tb_next
        passed = passed.tb_next
    return "".join(traceback.format_exception(type(error), error, trace)) if trace else ""


def _is_ours(file: str) -> bool:
    here = Path(__file__)
    return Path(file).parent == here.parent or Path(file) == here.parents[1] / "rewards.py"


def _finite(outcome: RewardOutcome) -> RewardOutcome:
    # One infinity makes every advantage of its group NaN or 0, and the curve stays plausible; so
    # does a number whose square is infinite, since advantages are divided by a deviation.
    if not isinstance(outcome, Value) or abs(outcome.value) <= LARGEST:
        return outcome
    what = "too large" if math.isfinite(outcome.value) else "not finite"
    return Failed(kind="invalid", reason=f"returned {outcome.value}, which is {what}")


def encoded(outcome: RewardOutcome) -> list[Any]:
    """As JSON."""
    match outcome:
        case Value():
            return ["value", outcome.value]
        case Abstained():
            return ["abstained", outcome.reason]
        case Failed():
            return ["failed", outcome.kind, outcome.reason]


def decoded(entry: Sequence[Any]) -> RewardOutcome:
    """What was ``encoded``."""
    match entry[0]:
        case "value":
            return Value(value=float(entry[1]))
        case "abstained":
            return Abstained(reason=str(entry[1]))
        case _:
            return Failed(kind=entry[1], reason=str(entry[2]))
