"""Several servers as one: the least loaded gets the next prompt, a dead one's go elsewhere."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

from grpo_generator_vllm_server.client import Server
from grpo_generator_vllm_server.errors import (
    BadAnswerError,
    NoServerLeftError,
    ServerDownError,
    ServerHungError,
    ServerLostError,
)
from grpo_generator_vllm_server.gate import CLOSED, Gate

if TYPE_CHECKING:
    from grpo_generator_vllm_server.sync import Facts, Published

logger = logging.getLogger(__name__)

T = TypeVar("T")

FAILURES_IN_A_ROW = 3
"""After so many a server is out, even if it says that it is healthy."""
POLL_SECONDS = 0.05


@dataclass(eq=False)
class Member:
    """A server, how much it has to do, and why it is out if it is."""

    server: Server
    gate: Gate = field(default_factory=Gate)
    facts: Facts | None = None
    """What it said of itself at the first contact."""
    met: bool = False
    """Whether these are facts of the process that runs now."""
    held: int = -1
    """The policy version that it said it holds, when it was asked after a push."""
    published: Published | None = None
    """The weights that it holds; changes while the gate is shut and nobody is inside."""
    paused: bool = False
    """Whether this generator has paused it, and not yet resumed it."""
    busy: int = 0
    failures: int = 0
    out: str | None = None
    hung: bool = False
    """It says that it is healthy, but did not answer; only another process may come back."""
    lives: int = 0
    """How often it has come back; what a former life left behind is not the new one's fault."""

    def take_out(self, why: BaseException | str) -> None:
        if self.out is None:
            logger.warning("taken out: %s", why)
        self.out, self.met = str(why), False

    def take_in(self) -> None:
        self.lives += self.out is not None
        self.out, self.failures, self.hung = None, 0, False


@dataclass(kw_only=True)
class Fleet:
    """All servers of a run. Several threads may draw from it, and one may sync it meanwhile.

    Args:
        at_once: most prompts that one server has at a time.
        attempts: how often a prompt is tried in all.
        revive: called when no server is left; brings some back, or returns at its time limit.
    """

    members: Sequence[Member]
    at_once: int
    attempts: int
    revive: Callable[[], None] = field(default=lambda: None)
    interrupted: int = 0
    """Completions that the latest sync has cut off."""
    sampling: int = 0
    """Requests for groups that are not yet answered in full."""
    closed: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Guards how busy members are, and how often they have failed."""

    @property
    def usable(self) -> list[Member]:
        return [m for m in self.members if m.out is None]

    def each(self, prompts: int, ask: Callable[[Member, int], T]) -> Iterator[tuple[int, T]]:
        """``ask(member, index)`` for each index, each answered exactly once, as they come.

        Raises:
            NoServerLeftError: no server is left, or a prompt has failed everywhere.
            RequestRefusedError: whatever ``ask`` raises that is not about the server.
        """
        yield from _Work(self, prompts, ask).answers()

    def require_any(self) -> None:
        """Raises ``NoServerLeftError``, with a reason for each, if all servers are out."""
        if not self.usable:
            reasons = "; ".join(str(m.out) for m in self.members)
            raise NoServerLeftError(f"no vLLM server is left: {reasons}")

    def require_open(self) -> None:
        """Raises ``NoServerLeftError`` once the fleet has been closed."""
        if self.closed.is_set():
            raise NoServerLeftError(CLOSED)

    def close(self) -> None:
        """End everything that other threads are doing with these servers."""
        self.closed.set()
        for member in self.members:
            member.gate.end()
            member.server.close()


class _Work(Generic[T]):
    """One call of ``Fleet.each``."""

    def __init__(self, fleet: Fleet, prompts: int, ask: Callable[[Member, int], T]) -> None:
        self._fleet, self._ask = fleet, ask
        self._waiting = deque(range(prompts))
        self._tried = [0] * prompts
        self._revived = 0
        self._running: dict[Future[T], tuple[Member, int, int]] = {}

    def answers(self) -> Iterator[tuple[int, T]]:
        fleet = self._fleet
        pool = ThreadPoolExecutor(max(1, fleet.at_once * len(fleet.members)))
        try:
            while self._waiting or self._running:
                fleet.require_open()
                if not self._running and not fleet.usable:
                    # Bounded: a prompt that kills its server would kill each one that comes back.
                    if self._revived < fleet.attempts:
                        self._revived += 1
                        fleet.revive()
                    fleet.require_any()
                self._hand_out(pool)
                if not self._running:
                    # Another thread's prompts keep all servers busy.
                    fleet.closed.wait(POLL_SECONDS)
                    continue
                done, _ = wait(self._running, return_when=FIRST_COMPLETED)
                for future in done:
                    member, index, life = self._running.pop(future)
                    with fleet.lock:
                        member.busy -= 1
                    try:
                        answer = future.result()
                    except ServerLostError as error:
                        fleet.require_open()
                        self._failed(member, index, life, error)
                    else:
                        member.failures = 0
                        yield index, answer
        finally:
            with fleet.lock:
                for member, _, _ in self._running.values():
                    member.busy -= 1
            # What runs ends by itself, at its time limit at the latest.
            pool.shutdown(wait=False, cancel_futures=True)

    def _hand_out(self, pool: ThreadPoolExecutor) -> None:
        while self._waiting:
            with self._fleet.lock:
                free = [m for m in self._fleet.usable if m.busy < self._fleet.at_once]
                if not free:
                    return
                member = min(free, key=lambda m: m.busy)
                member.busy += 1
            index = self._waiting.popleft()
            future = pool.submit(self._ask, member, index)
            self._running[future] = (member, index, member.lives)

    def _failed(self, member: Member, index: int, life: int, error: ServerLostError) -> None:
        """Put the prompt back, and the server out if it is the server."""
        self._waiting.appendleft(index)
        if member.lives != life:
            return
        with self._fleet.lock:
            member.failures += 1
        if not isinstance(error, ServerDownError):
            # The prompt itself may be what a server cannot do; a dead server is not its fault.
            self._tried[index] += 1
        if (
            isinstance(error, ServerDownError)
            or member.failures >= FAILURES_IN_A_ROW
            or (member.out is None and not member.server.healthy())
        ):
            member.take_out(error)
            member.hung |= isinstance(error, ServerHungError)
        elif self._tried[index] >= self._fleet.attempts:
            kind = type(error) if isinstance(error, BadAnswerError) else NoServerLeftError
            raise kind(f"a prompt has failed {self._tried[index]} times: {error}") from error
        else:
            logger.warning("asked again: %s", error)
