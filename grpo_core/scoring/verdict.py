"""Whether a run may go on after what its rewards did: the same on all ranks, in order of groups."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from grpo_core.errors import RewardError
from grpo_core.rewards import Reward
from grpo_core.scoring.lanes import Call
from grpo_core.types import Failed

Gather = Callable[[list[Any]], list[Any]]
"""Concatenates a list over all ranks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tally:
    """A call as other ranks hear of it."""

    group: int
    asked: int
    failed: int
    report: str
    """What failed first, where; empty if nothing did."""
    trace: str


class Breaker:
    """Stops a run when too many of a provider's last calls failed."""

    def __init__(self, window: int, bound: float) -> None:
        self._shares: deque[float] = deque(maxlen=window)
        self._bound = bound

    def opens(self, share: float) -> bool:
        """Take the share of one call's rollouts that failed; whether that was too much."""
        self._shares.append(share)
        return len(self._shares) == self._shares.maxlen and self.rate > self._bound

    @property
    def rate(self) -> float:
        return sum(self._shares) / len(self._shares)


class Judge:
    """The policy of one provider."""

    def __init__(self, name: str, reward: Reward) -> None:
        self._who = f"reward {name!r}" + (f" ({reward.source})" if reward.source else "")
        self._how = reward.execution
        self._stops = reward.on_error == "stop"
        self._breaker = Breaker(self._how.failure_window, self._how.max_failure_rate)

    def tally(self, call: Call) -> Tally:
        """What the other ranks need to know of a call."""
        failed = next(
            ((o, r) for o, r in zip(call.answer.outcomes_B, call.rollouts, strict=True)
             if isinstance(o, Failed)),
            None,
        )  # fmt: skip
        report = ""
        if failed is not None:
            failure, rollout = failed
            report = (
                f"{self._who} {failure.reason}; first seen at prompt {rollout.prompt.id!r}, "
                f"completion {rollout.text[:80]!r}"
            )
        return Tally(
            group=call.rollouts[0].group,
            asked=len(call.rollouts),
            failed=call.failures,
            report=report,
            trace=call.trace(),
        )

    def decide(self, tallies: Sequence[Tally], *, part: bool) -> None:
        """Raise ``RewardError`` if the run must stop; ``tallies`` are those of all ranks."""
        tallies = sorted(tallies, key=lambda tally: tally.group)
        asked, failed = sum(t.asked for t in tallies), sum(t.failed for t in tallies)
        opened = [t for t in tallies if self._breaker.opens(t.failed / t.asked)]
        if not failed:
            return
        first = next(t for t in tallies if t.failed)
        if self._stops:
            raise _error(
                first,
                f"{first.report}. A failed reward is never counted as 0: fix it, or set "
                "`on_error: drop` to leave such rollouts out",
            )
        if failed == asked and not part:
            raise _error(
                first,
                f"{first.report}, and so it did on all {asked} rollouts of the step: nothing is "
                "left to learn from. A failed reward is never counted as 0",
            )
        if opened:
            raise _error(
                first,
                f"{first.report}. It failed on {self._breaker.rate:.0%} of its last "
                f"{self._how.failure_window} calls, more than execution.max_failure_rate "
                f"{self._how.max_failure_rate:g} (reward/.../failed shows since when)",
            )


def _error(tally: Tally, text: str) -> RewardError:
    error = RewardError(text)
    if tally.trace:
        error.add_note(f"Where it was raised:\n{tally.trace.rstrip()}")
    return error
