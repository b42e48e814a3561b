"""One provider as the scheduler sees it: how many calls at a time, how long, how often."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

from grpo_core.errors import ConfigError, GRPOError
from grpo_core.rewards import CallableReward, Reward, as_provider, stateful
from grpo_core.scoring.answers import (
    Answer,
    DeadlineError,
    LostError,
    RemoteError,
    answer_of,
    failure_of,
    joined,
    trace_of,
)
from grpo_core.scoring.loops import AsyncCalls, BlockedLoopError
from grpo_core.scoring.processes import Processes, packed
from grpo_core.scoring.threads import Threads
from grpo_core.types import Failed, Rollout, ScoreRequest

if TYPE_CHECKING:
    from tenacity import RetryCallState

PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 8.0
"""Between two attempts: doubled from the first to the second, less up to a quarter at random, as in
openai-python."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """What came of one request, after its last attempt.

    Example: ``Call(rollouts=group, answer=answer, seconds=0.8, retries=1)``.
    """

    rollouts: tuple[Rollout, ...]
    answer: Answer
    seconds: float
    """Of all attempts and the pauses between them, without the waiting for its turn."""
    retries: int
    cause: Exception | None = None
    """What the last attempt raised."""

    @property
    def failures(self) -> int:
        return sum(isinstance(o, Failed) for o in self.answer.outcomes_B)

    def trace(self) -> str:
        """The traceback of ``cause``, where it was raised."""
        if isinstance(self.cause, RemoteError):
            return self.cause.traceback
        return trace_of(self.cause) if self.cause else ""


class InProcess:
    """A provider in this process: on the providers' event loop, or in a thread."""

    def __init__(self, provider: Any, name: str, loop: AsyncCalls) -> None:
        self._provider = provider
        self._threads = Threads(name)
        self._loop = loop
        self._blocked_loops = 0
        is_function = isinstance(provider, CallableReward)
        self._is_async = (
            provider.is_async if is_function else inspect.iscoroutinefunction(provider.score)
        )

    @property
    def abandoned(self) -> int:
        return self._threads.abandoned + self._blocked_loops

    async def call(self, request: ScoreRequest, timeout: float | None) -> Answer:
        """See ``AsyncCalls.call`` and ``Threads.call`` for what it raises."""
        started = perf_counter()
        returned: Any = None
        if not self._is_async:
            returned = await self._threads.call(lambda: self._blocking(request), timeout)
            if isinstance(returned, Answer):
                return returned
            if timeout is not None:
                timeout = max(0.0, timeout - (perf_counter() - started))

        async def ask() -> Answer:
            waited = self._provider.score(request) if self._is_async else returned
            return answer_of(await waited, request)

        try:
            answer: Answer = await self._loop.call(ask, timeout)
        except BlockedLoopError:
            self._blocked_loops += 1
            raise
        return answer

    def _blocking(self, request: ScoreRequest) -> Any:
        returned = self._provider.score(request)
        return returned if inspect.isawaitable(returned) else answer_of(returned, request)

    def close(self) -> None:
        self._threads.close()


class Lane:
    """All calls to one provider."""

    def __init__(self, name: str, reward: Reward, loop: AsyncCalls) -> None:
        """Raises ``ConfigError``: no provider, or one that cannot be called as asked for."""
        self.name = name
        self.reward = reward
        how = reward.execution
        provider: Any = reward.provider
        self.calls: InProcess | Processes
        blocking = True
        self._needs_batch = True
        if how.isolation == "process":
            self.calls = Processes(
                name,
                packed(provider, name),
                concurrency=how.concurrency or 1,
                memory_mb=how.memory_mb,
            )
        else:
            adapted: Any = as_provider(provider)
            self.calls = InProcess(adapted, name, loop)
            blocking = not self.calls._is_async
            self._needs_batch = bool(getattr(adapted, "needs_batch", False)) or stateful(provider)
        self._has_state = stateful(provider)
        width = how.concurrency or (1 if blocking else None)
        self._room = contextlib.nullcontext() if width is None else asyncio.Semaphore(width)
        # The global generator is the run's: a retry must not change what it draws next.
        self._random = random.Random()

    @property
    def component(self) -> object:
        """What has the provider's state."""
        return self.calls if isinstance(self.calls, Processes) else self.reward.provider

    async def start(self) -> None:
        """Start what must run before it can be told whether groups suffice."""
        if isinstance(self.calls, Processes):
            await self.calls.start()
            self._needs_batch, self._has_state = self.calls.needs_batch, self.calls.has_state
        if self._has_state and self.reward.execution.overlap:
            raise ConfigError(
                f"reward {self.name!r} has state, and with execution.overlap it would depend on "
                "which group was finished first; leave overlap out"
            )

    @property
    def by_group(self) -> bool:
        """Whether each group is a call; known once started."""
        overlap = self.reward.execution.overlap
        return not self._needs_batch if overlap is None else overlap

    async def ask(
        self, rollouts: Sequence[Rollout], request: Callable[[Sequence[Rollout]], ScoreRequest]
    ) -> Call:
        """Score some rollouts; what goes wrong is in the outcomes."""
        async with self._room:
            return await self._attempts(rollouts, request)

    async def _attempts(
        self, rollouts: Sequence[Rollout], request: Callable[[Sequence[Rollout]], ScoreRequest]
    ) -> Call:
        from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt

        how = self.reward.execution
        started = perf_counter()
        tries = 0
        cause: Exception | None = None
        try:
            async for attempt in AsyncRetrying(
                stop=stop_after_attempt(how.retries + 1),
                wait=self._pause,
                retry=retry_if_exception(_may_pass),
                reraise=True,
            ):
                with attempt:
                    tries += 1
                    # A new request for each: what a failed attempt has logged is not kept.
                    answer = await self.calls.call(request(rollouts), how.timeout)
        except Exception as error:
            if len(rollouts) > 1 and self._can_split(error):
                return await self._one_by_one(rollouts, request, started, tries - 1)
            cause = error
            failed = failure_of(error)
            if tries > 1:
                failed = Failed(kind=failed.kind, reason=f"{failed.reason} ({tries} attempts)")
            answer = Answer(outcomes_B=(failed,) * len(rollouts), columns={}, metrics={})
        return Call(
            rollouts=tuple(rollouts),
            answer=answer,
            seconds=perf_counter() - started,
            retries=tries - 1,
            cause=cause,
        )

    def _can_split(self, error: Exception) -> bool:
        """Whether one of several rollouts may have ended a worker that says nothing of the rest."""
        lost = isinstance(error, (DeadlineError, LostError))
        return lost and isinstance(self.calls, Processes) and self.calls.per_rollout

    async def _one_by_one(
        self,
        rollouts: Sequence[Rollout],
        request: Callable[[Sequence[Rollout]], ScoreRequest],
        started: float,
        retries: int,
    ) -> Call:
        """Each rollout by itself, so that one that hangs or kills its worker costs no other; all
        together in no more time than they had before."""
        timeout = self.reward.execution.timeout
        share = None if timeout is None else max(1.0, timeout / len(rollouts))
        answers, cause = list[Answer](), None
        for rollout in rollouts:
            try:
                answers.append(await self.calls.call(request([rollout]), share))
            except Exception as error:
                cause = error
                answers.append(Answer(outcomes_B=(failure_of(error),), columns={}, metrics={}))
        return Call(
            rollouts=tuple(rollouts),
            answer=joined(answers),
            seconds=perf_counter() - started,
            retries=retries + 1,
            cause=cause,
        )

    def _pause(self, state: RetryCallState) -> float:
        longest: float = min(PAUSE_SECONDS * 2 ** (state.attempt_number - 1), LONGEST_PAUSE_SECONDS)
        return longest * (1 - 0.25 * self._random.random())


def _may_pass(error: BaseException) -> bool:
    """Whether another attempt may succeed. Our own errors are verdicts on data and options."""
    if isinstance(error, RemoteError):
        return not error.final
    return isinstance(error, Exception) and not isinstance(error, GRPOError)
