"""Calls to several servers: the least loaded gets the next one, a dead one's go elsewhere."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from grpo_generator_vllm_server.errors import (
    BadAnswerError,
    NoServerLeftError,
    ServerDownError,
    ServerHungError,
    ServerLostError,
)

if TYPE_CHECKING:
    from grpo_generator_vllm_server.answer import Piece
    from grpo_generator_vllm_server.drafts import Call
    from grpo_generator_vllm_server.fleet import Fleet, Member

logger = logging.getLogger(__name__)

Answer = tuple[Sequence["Piece"], int]
"""What a call has come to, and the policy version that sampled it."""

FAILURES_IN_A_ROW = 3
"""After so many a server is out, even if it says that it is healthy."""
POLL_SECONDS = 0.01
"""Longest wait before tools, other threads and the end are looked at."""
LOADED_CALLS, LOADED_RATIO = 64, 1.5
"""A server has so much more to do than another that a prefix in its cache does not make up for it:
by both, the defaults of SGLang's router (``balance_abs_threshold``, ``balance_rel_threshold``)."""


class Work:
    """The calls of one request; more may come while others are under way.

    Args:
        ask: asks a server, in a thread of its own.
        group: completions per prompt, each of which may be a call of its own.
    """

    def __init__(self, fleet: Fleet, ask: Callable[[Member, Call], Answer], *, group: int) -> None:
        self._fleet, self._ask = fleet, ask
        self._waiting: deque[Call] = deque()
        self._tried: Counter[Call] = Counter()
        self._homes: dict[tuple[int, ...], Member] = {}
        """Who was last asked to go on from a beginning."""
        self._under_way = 0
        self._ended: SimpleQueue[tuple[Future[Answer], Call, Member, int]] = SimpleQueue()
        self._revived = 0
        # Its threads come one by one, as they are needed.
        self._pool = ThreadPoolExecutor(max(1, fleet.at_once * group * len(fleet.members)))

    @property
    def idle(self) -> bool:
        """Whether every call has been answered."""
        return not self._waiting and not self._under_way

    def add(self, calls: Iterable[Call]) -> None:
        self._waiting.extend(calls)

    def next(self) -> Call | None:
        """A call that has been answered, if one is within ``POLL_SECONDS``: once, and its draft has
        taken the answer.

        Raises:
            NoServerLeftError: no server is left, or a call has failed everywhere.
            RequestRefusedError: whatever ``ask`` raises that is not about the server.
        """
        fleet = self._fleet
        fleet.require_open()
        if not self._under_way and not fleet.usable:
            # Bounded: a prompt that kills its server would kill each one that comes back.
            if self._revived < fleet.attempts:
                self._revived += 1
                fleet.revive()
            fleet.require_any()
        self._hand_out()
        try:
            future, call, member, life = self._ended.get(timeout=POLL_SECONDS)
        except Empty:
            return None
        self._under_way -= 1
        try:
            # In this thread: a tokenizer may be needed for it, which is not to be shared.
            _take(member, call, *future.result())
        except ServerLostError as error:
            fleet.require_open()
            self._failed(member, call, life, error)
            return None
        member.failures = 0
        return call

    def close(self) -> None:
        # What runs ends by itself, at its time limit at the latest.
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _hand_out(self) -> None:
        while self._waiting:
            call = self._waiting[0]
            with self._fleet.lock:
                member = self._choose(call)
                if member is None:
                    return
                member.busy += call.share
            self._waiting.popleft()
            place = call.draft.place
            self._homes[place] = self._homes[place[:1]] = member
            self._under_way += 1
            future = self._pool.submit(self._ask, member, call)
            future.add_done_callback(partial(self._end, call, member, member.lives))

    def _choose(self, call: Call) -> Member | None:
        """Who has its beginning in its cache already, of this rollout or another of the prompt,
        unless that is much more loaded than another."""
        free = [m for m in self._fleet.usable if m.busy < self._fleet.at_once]
        if not free:
            return None
        least = min(free, key=lambda member: member.busy)
        place = call.draft.place
        home = self._homes.get(place) or self._homes.get(place[:1])
        if home not in free:
            return least
        more = (home.busy - least.busy) / call.share
        loaded = more > LOADED_CALLS and home.busy > LOADED_RATIO * least.busy
        return least if loaded else home

    def _end(self, call: Call, member: Member, life: int, future: Future[Answer]) -> None:
        # Here, as nobody may be left to hear of it.
        with self._fleet.lock:
            member.busy -= call.share
        self._ended.put((future, call, member, life))

    def _failed(self, member: Member, call: Call, life: int, error: ServerLostError) -> None:
        """Put the call back, and the server out if it is the server."""
        self._waiting.appendleft(call)
        if member.lives != life:
            return
        with self._fleet.lock:
            member.failures += 1
        if not isinstance(error, ServerDownError):
            # The prompt itself may be what a server cannot do; a dead server is not its fault.
            self._tried[call] += 1
        tried = self._tried[call]
        if (
            isinstance(error, ServerDownError)
            or member.failures >= FAILURES_IN_A_ROW
            or (member.out is None and not member.server.healthy())
        ):
            member.take_out(error)
            member.hung |= isinstance(error, ServerHungError)
        elif tried >= self._fleet.attempts:
            kind = type(error) if isinstance(error, BadAnswerError) else NoServerLeftError
            raise kind(f"a prompt has failed {tried} times: {error}") from error
        else:
            logger.warning("asked again: %s", error)


def _take(member: Member, call: Call, pieces: Sequence[Piece], policy_version: int) -> None:
    try:
        call.draft.take(call.members, pieces, policy_version)
    except BadAnswerError as error:
        raise BadAnswerError(f"{member.server}: {error}") from error
