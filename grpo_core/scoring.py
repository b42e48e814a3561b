"""Run all reward providers over a step's rollouts; a failure is never turned into a number."""

from __future__ import annotations

import asyncio
import inspect
import math
import threading
from collections.abc import Awaitable, Coroutine, Sequence
from typing import Any

from grpo_core.errors import RewardError
from grpo_core.rewards import Reward, as_outcomes, as_provider
from grpo_core.types import (
    Abstained,
    Failed,
    RewardOutcome,
    Rollout,
    ScoredRollouts,
    ScoreRequest,
    Value,
)


class Scorer:
    """The reward providers of a run behind one call."""

    def __init__(self, rewards: Sequence[Reward]) -> None:
        """Raises ``RewardError`` when two providers go by one name."""
        self._rewards = list(rewards)
        self._providers = [as_provider(reward.provider) for reward in rewards]
        self.names = tuple(
            reward.label or provider.name
            for reward, provider in zip(rewards, self._providers, strict=True)
        )
        twice = sorted({name for name in self.names if self.names.count(name) > 1})
        if twice:
            raise RewardError(
                f"two rewards are called {twice[0]!r}; give one of them a `label`, so that "
                "metrics can tell them apart"
            )

    def score(
        self, step: int, rollouts: Sequence[Rollout], *, part: bool = False
    ) -> ScoredRollouts:
        """Ask every provider about every rollout that did not fail itself.

        Args:
            part: these are few of the step's rollouts, so that a provider with ``on_error="drop"``
                which fails on all of them need not be down.

        Synchronous providers run one after the other; the awaitables of the others run together
        on one event loop.

        Raises:
            RewardError: a provider with ``on_error="stop"`` raised or returned something that is
                no reward, or one with ``on_error="drop"`` had no success in the whole step.
        """
        alive = [i for i, rollout in enumerate(rollouts) if rollout.error is None]
        request = ScoreRequest(step=step, rollouts_B=tuple(rollouts[i] for i in alive))
        answers: list[Any] = [
            self._call(provider.score, request) if alive else [] for provider in self._providers
        ]
        waiting = [i for i, answer in enumerate(answers) if inspect.isawaitable(answer)]
        if waiting:
            done = run_async(_gather([answers[i] for i in waiting]))
            for i, answer in zip(waiting, done, strict=True):
                answers[i] = answer
        columns = []
        for position, answer in enumerate(answers):
            outcomes: list[RewardOutcome] = [
                Abstained(reason="the rollout itself failed") for _ in rollouts
            ]
            for row, outcome in zip(
                alive, self._checked(position, answer, request, part), strict=True
            ):
                outcomes[row] = outcome
            columns.append(tuple(outcomes))
        return ScoredRollouts(
            providers_F=self.names,
            weights_F=tuple(reward.weight for reward in self._rewards),
            outcomes_F_B=tuple(columns),
        )

    @staticmethod
    def _call(score: Any, request: ScoreRequest) -> Any:
        try:
            return score(request)
        except Exception as error:
            return error

    def _checked(
        self, position: int, answer: object, request: ScoreRequest, part: bool
    ) -> list[RewardOutcome]:
        reward, rollouts = self._rewards[position], request.rollouts_B
        outcomes, cause = self._outcomes(answer, len(rollouts))
        failures = [o for o in outcomes if isinstance(o, Failed)]
        down = len(failures) == len(outcomes) and not part
        if failures and (reward.on_error == "stop" or down):
            first = next(i for i, o in enumerate(outcomes) if isinstance(o, Failed))
            raise RewardError(self._report(position, failures[0], rollouts[first])) from cause
        return outcomes

    @staticmethod
    def _outcomes(
        answer: object, expected: int
    ) -> tuple[list[RewardOutcome], BaseException | None]:
        if isinstance(answer, BaseException):
            # `RewardError` is our own verdict on what was returned; anything else was raised.
            invalid = isinstance(answer, RewardError)
            text = str(answer) if invalid else f"raised {type(answer).__name__}: {answer}"
            failed = Failed(kind="invalid" if invalid else "error", reason=text)
            return [failed] * expected, answer
        try:
            outcomes = as_outcomes(answer)
        except RewardError as error:
            return [Failed(kind="invalid", reason=str(error))] * expected, error
        if len(outcomes) != expected:
            text = f"returned {len(outcomes)} values for {expected} completions"
            return [Failed(kind="invalid", reason=text)] * expected, None
        return [_finite(outcome) for outcome in outcomes], None

    def _report(self, position: int, failure: Failed, rollout: Rollout) -> str:
        reward = self._rewards[position]
        source = f" ({reward.source})" if reward.source else ""
        return (
            f"reward {self.names[position]!r}{source} {failure.reason}; first seen at prompt "
            f"{rollout.prompt.id!r}, completion {rollout.text[:80]!r}. A failed reward is never "
            "counted as 0: fix it, or set `on_error: drop` to leave such rollouts out"
        )


def _finite(outcome: RewardOutcome) -> RewardOutcome:
    # One infinity makes every advantage of its group NaN or 0, and the curve stays plausible.
    if isinstance(outcome, Value) and not math.isfinite(outcome.value):
        return Failed(kind="invalid", reason=f"returned {outcome.value}, which is not finite")
    return outcome


async def _gather(awaitables: Sequence[Awaitable[Any]]) -> list[Any]:
    return await asyncio.gather(*awaitables, return_exceptions=True)


def run_async(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run to completion, also where a loop is already running (a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    box: list[Any] = []

    def target() -> None:
        try:
            box.append(asyncio.run(coroutine))
        except BaseException as error:
            box.append(error)

    thread = threading.Thread(target=target, name="grpo-rewards")
    thread.start()
    thread.join()
    if isinstance(box[0], BaseException):
        raise box[0]
    return box[0]
