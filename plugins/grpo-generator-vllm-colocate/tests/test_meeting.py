"""Ranks that wait for each other, by a real store; threads stand for them. Without vLLM."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist

from grpo_generator_vllm_colocate.errors import PeerError
from grpo_generator_vllm_colocate.meeting import PART, Meeting

RANKS = (2, 3, 4)


@pytest.fixture
def store() -> Any:
    return dist.TCPStore(
        "127.0.0.1", 0, None, True, timeout=timedelta(seconds=20), wait_for_workers=False
    )


@pytest.fixture
def meet(store: Any) -> Iterator[Callable[..., list[Any]]]:
    """What each rank's call gives, or the error that it raises."""
    pool = ThreadPoolExecutor(len(RANKS))

    def run(call: Callable[[Meeting], Any], *, name: str = "m", timeout: float = 20) -> list[Any]:
        def one(rank: int) -> Any:
            own = Meeting(store.clone(), name, ranks=RANKS, rank=rank, timeout=timeout)
            try:
                return call(own)
            except PeerError as error:
                return str(error)

        return [done.result(30) for done in [pool.submit(one, rank) for rank in RANKS]]

    yield run
    pool.shutdown()


def test_each_hears_all_in_the_order_of_ranks_again_and_again(meet, store) -> None:
    keys = store.num_keys()
    long = "x" * (2 * PART + 1)  # more than the store takes at once

    def talk(meeting: Meeting) -> Any:
        found = [meeting.exchange([meeting.rank, number]) for number in range(50)]
        assert meeting.exchange(long) == [long] * 3
        meeting.exchange(None)
        return found

    expected = [[[rank, number] for rank in RANKS] for number in range(50)]
    assert meet(talk) == [expected] * 3
    # Of the last place only: the header and one part of each.
    assert store.num_keys() - keys <= 2 * len(RANKS)


def test_a_flag_of_one_is_known_to_all(meet, store) -> None:
    keys = store.num_keys()

    def agree(meeting: Meeting) -> Any:
        return [meeting.agree(meeting.rank == 3 and place % 2 == 0) for place in range(50)]

    assert meet(agree) == [[place % 2 == 0 for place in range(50)]] * 3
    assert store.num_keys() - keys <= 3


@pytest.mark.parametrize("way", ["exchange", "agree"])
def test_a_failure_reaches_whoever_waits_and_the_next_place_is_common_again(meet, way) -> None:
    def fail(meeting: Meeting) -> Any:
        getattr(meeting, way)() if way == "agree" else meeting.exchange(1)
        began = time.monotonic()
        if meeting.rank == 4:
            time.sleep(0.3)
            meeting.fail("out of memory")
            assert time.monotonic() - began < 1, "it waited for the others"
        else:
            with pytest.raises(PeerError, match=r"rank 4 failed: out of memory. Rank \d cannot"):
                meeting.agree() if way == "agree" else meeting.exchange(2)
            assert time.monotonic() - began < 5
        return meeting.agree() if way == "agree" else meeting.exchange(3)

    assert meet(fail) == [False if way == "agree" else [3, 3, 3]] * 3


def test_a_failure_is_seen_without_waiting_for_it(meet) -> None:
    def look(meeting: Meeting) -> Any:
        meeting.exchange(None)
        if meeting.rank == 2:
            meeting.fail("an illegal memory access")
            return None
        while not meeting.failure():
            time.sleep(0.01)
        return meeting.failure()

    assert meet(look)[1:] == ["rank 2 failed: an illegal memory access"] * 2


@pytest.mark.parametrize("way", ["exchange", "agree"])
def test_who_comes_too_late_finds_that_the_others_have_gone(meet, way) -> None:
    """Else it would take them for ranks that take part, and wait for them inside vLLM."""

    def late(meeting: Meeting) -> Any:
        if meeting.rank == 4:
            time.sleep(1)
        return meeting.agree() if way == "agree" else meeting.exchange(meeting.rank)

    found = meet(late, timeout=0.4)
    for text in found[:2]:
        assert "(generator.peer_timeout) for" in text or "failed: rank" in text
    assert "failed: rank" in found[2]
    if way == "exchange":
        assert any("for rank 4: one has ended, hangs" in text for text in found[:2])


def test_a_lost_store_is_named() -> None:
    one = Meeting(_Gone(), "m", ranks=(0, 1), rank=0, timeout=5)
    one.fail("nobody is told")
    with pytest.raises(PeerError, match="has lost the store of the process group"):
        one.exchange(1)


class _Gone(dist.Store):
    """What a store does whose process has ended."""

    def set(self, key: str, value: str) -> None:
        raise dist.DistNetworkError("Broken pipe")
