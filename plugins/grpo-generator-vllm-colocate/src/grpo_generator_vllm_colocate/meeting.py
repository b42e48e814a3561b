"""Ranks that wait for each other, and hear at once when one of them has failed.

By the store of the default process group, not by collectives: whoever fails says so and need not
wait, nobody waits for a rank that has said so, and nothing comes between the trainer's own
collectives, whose order must be the same on all ranks.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch.distributed as dist

from grpo_generator_vllm_colocate.errors import PeerError

SHORTEST, LONGEST = 0.001, 0.02
"""Seconds between two looks into the store, at first and at last. A look takes 30 us on loopback
(measured), and one store serves all ranks of a run."""
PART = 4 * 2**20
"""Bytes. TCPStore of torch 2.13 closes the connection at a value of more than 8 MiB."""
FAILED = "failed:"
"""What a rank says begins so, where it says that it has failed."""


def own_store() -> Any:
    """Another connection to the store of the default process group."""
    default: Any = dist.distributed_c10d._get_default_store()
    return default.clone()


class Meeting:
    """Some ranks that come to the same places in the same order.

    Args:
        store: of all ranks; see ``own_store``.
        name: what its keys begin with; never used twice in a store.
        ranks: who belongs to it; the same on all of them.
        rank: this one.
        timeout: seconds that others are waited for.
    """

    def __init__(
        self, store: Any, name: str, *, ranks: Sequence[int], rank: int, timeout: float
    ) -> None:
        self.ranks, self.rank = tuple(ranks), rank
        self._store, self._name, self._timeout = store, name, timeout
        self._place = 0
        """Each rank says one thing at each place."""
        self._said: list[str] = []
        """Keys of what this rank has said to the others, and they may not have read."""

    def exchange(self, item: Any) -> list[Any]:
        """What each rank says here (JSON), in the order of ranks.

        Raises:
            PeerError: one of them has failed, or has not come in time.
        """
        self._place += 1
        found: dict[int, Any] = {}

        def missing() -> str:
            for rank in self.ranks:
                if rank not in found and self._is_there(self._key(rank)):
                    found[rank] = self._heard(self._key(rank))
            return ", ".join(f"rank {rank}" for rank in self.ranks if rank not in found)

        with self._connected():
            before, self._said = self._said, []
            self._say(item)
            try:
                self._wait(missing)
            except BaseException as error:
                # Whoever comes late must not take this rank for one that takes part.
                self._store.set(self._key(self.rank), self._failure(error))
                raise
            # All are here, so all have read what was said at the place before.
            self._forget(before)
        return [found[rank] for rank in self.ranks]

    def agree(self, flag: bool = False) -> bool:
        """Wait for all ranks; whether any of them raised its flag. A few looks per rank, however
        many ranks there are.

        Raises:
            PeerError: one of them has failed, or has not come in time.
        """
        self._place += 1
        flagged, count, everybody = (self._key(what) for what in ("flag", "count", "all"))
        here = f"all of {len(self.ranks)} ranks"
        with self._connected():
            if flag:
                self._store.set(flagged, "1")
            if self._store.add(count, 1) == len(self.ranks):
                # Not in place of a failure.
                self._store.compare_set(everybody, "", "here")
            try:
                self._wait(lambda: "" if self._is_there(everybody) else here)
            except BaseException as error:
                self._store.set(everybody, self._failure(error))
                raise
            self._text(everybody)
            before, self._said = self._said, []
            if self.rank == self.ranks[0]:
                self._forget(before)
                self._said = [flagged, count, everybody]
            return self._is_there(flagged)

    def fail(self, reason: object) -> None:
        """Have the others fail at the next place; this rank does not wait for them there."""
        self._place += 1
        # Without the store's process there is nobody left to be told.
        with suppress(PeerError), self._connected():
            for whom in (self.rank, "all"):
                self._store.set(self._key(whom), self._failure(reason))

    def failure(self) -> str | None:
        """What another rank says that will fail at the next place; ``None`` if none does."""
        with self._connected():
            for rank in self.ranks:
                key = self._key(rank, self._place + 1)
                if rank != self.rank and self._is_there(key):
                    text: str = self._store.get(key).decode()
                    if text.startswith(FAILED):
                        return text.removeprefix(FAILED)
        return None

    def end(self) -> None:
        """Nobody will come to it again: take away what this rank has left in the store."""
        with self._connected():
            self._forget(self._said)

    # -- inside ---------------------------------------------------------------------------------

    def _key(self, what: object, place: int | None = None) -> str:
        return f"{self._name}/{place or self._place}/{what}"

    @contextmanager
    def _connected(self) -> Iterator[None]:
        try:
            yield
        except PeerError:
            raise
        except RuntimeError as error:
            raise PeerError(
                f"rank {self.rank} has lost the store of the process group; the process that "
                f"holds it has ended: {error}"
            ) from error

    def _wait(self, missing: Callable[[], str]) -> None:
        began = time.monotonic()
        for pause in _pauses():
            left = missing()
            if not left:
                return
            if time.monotonic() - began > self._timeout:
                raise PeerError(
                    f"rank {self.rank} has waited {self._timeout:.0f} s (generator.peer_timeout) "
                    f"for {left}: one has ended, hangs, or is not asked as often"
                )
            time.sleep(pause)

    def _is_there(self, key: str) -> bool:
        return bool(self._store.check([key]))

    def _say(self, item: Any) -> None:
        text, key = json.dumps(item, separators=(",", ":")), self._key(self.rank)
        parts = [text[start : start + PART] for start in range(0, len(text), PART)]
        self._said = [key, *(f"{key}/{number}" for number in range(len(parts)))]
        for name, part in zip(self._said[1:], parts, strict=True):
            self._store.set(name, part)
        # Last, as this is what others look for.
        self._store.set(key, str(len(parts)))

    def _heard(self, key: str) -> Any:
        parts = range(int(self._text(key)))
        return json.loads(b"".join(self._store.get(f"{key}/{number}") for number in parts))

    def _text(self, key: str) -> str:
        text: str = self._store.get(key).decode()
        if text.startswith(FAILED):
            said = text.removeprefix(FAILED)
            raise PeerError(f"{said}. Rank {self.rank} cannot go on without it")
        return text

    def _failure(self, reason: object) -> str:
        return f"{FAILED}rank {self.rank} failed: {reason}"

    def _forget(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._store.delete_key(key)


def _pauses() -> Iterator[float]:
    pause = SHORTEST
    while True:
        yield pause
        pause = min(pause * 1.2, LONGEST)
