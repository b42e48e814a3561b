"""A moment in which nothing is being sampled, while other threads want to sample."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from grpo_core.errors import SyncError
from grpo_generator_vllm_server.errors import ServerError
from grpo_generator_vllm_server.ranks import on_main_rank, sum_over_ranks
from grpo_generator_vllm_server.sampling import require_ours

if TYPE_CHECKING:
    from grpo_generator_vllm_server.fleet import Fleet, Member
    from grpo_generator_vllm_server.sync import Way

PAUSE_SECONDS = 60.0
"""Longest wait for a server to interrupt what it samples: a step or two of its engine."""
ROUND_SECONDS = 0.2
"""A request that was still on its way when the server was paused is interrupted a round later."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How sampling ends. Example: ``Patience(interrupts=True, seconds=600)``."""

    interrupts: bool
    """Whether requests are cut off where they are, or waited for."""
    seconds: float


@contextmanager
def quiet(fleet: Fleet, way: Way | None, patience: Patience) -> Iterator[None]:
    """No request of this run is under way inside, of any rank; afterwards they go on.

    Every rank must enter it at the same point.

    Raises:
        SyncError: requests do not end, or a server holds other weights than it was given.
    """
    fleet.interrupted = 0
    for member in fleet.members:
        member.gate.shut()
        if member.out is not None:
            member.server.hang_up()
    try:
        sampling = sum_over_ranks(fleet.sampling)
        until = time.monotonic() + patience.seconds
        while sum_over_ranks(_inside(fleet)):
            usable = on_main_rank(partial(_interrupt, fleet, patience, until))
            for member in fleet.members:
                if member.server.url not in usable:
                    member.take_out(f"{member.server}: does not answer the main process")
                    member.server.hang_up()
            for member in fleet.usable:
                member.gate.wait_empty(ROUND_SECONDS)
        if sampling and way is not None:
            # Later it would hold the new weights, and nothing would tell.
            on_main_rank(partial(_require_ours, fleet, way))
        yield
    finally:
        for member in fleet.members:
            member.gate.open()


def _inside(fleet: Fleet) -> int:
    return sum(member.gate.inside for member in fleet.usable)


def _interrupt(fleet: Fleet, patience: Patience, until: float) -> tuple[str, ...]:
    """Cut off what the servers sample; those that answer."""
    if time.monotonic() > until:
        raise SyncError(
            f"completions did not end within {patience.seconds:g} s, so the weights under them "
            f"cannot be replaced: {', '.join(str(m.server) for m in fleet.usable)}"
        )
    members = fleet.usable
    if patience.interrupts and members:
        with ThreadPoolExecutor(len(members)) as pool:
            list(pool.map(_pause, members))
    return tuple(member.server.url for member in fleet.usable)


def _pause(member: Member) -> None:
    member.paused = True
    try:
        member.server.post("/pause?mode=abort", None, seconds=PAUSE_SECONDS)
    except ServerError as error:
        member.take_out(error)


def _require_ours(fleet: Fleet, way: Way) -> None:
    for member in fleet.usable:
        try:
            require_ours(member, way, "when the next was due")
        except ServerError as error:
            member.take_out(error)
