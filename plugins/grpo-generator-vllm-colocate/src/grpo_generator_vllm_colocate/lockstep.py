"""Ranks that hold one copy of the engine's weights together (tensor parallel), and so have to ask
for the same prompts in the same order.

Each of them has an engine with a scheduler of its own (vLLM's ``external_launcher``). These decide
alike as long as they are given the same requests in the same order; a step that one of them does
not take part in never ends on the others.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from grpo_core.errors import SyncError
from grpo_generator_vllm_colocate.batch import as_json, from_json, group_draws, group_of
from grpo_generator_vllm_colocate.errors import EngineError, PeerError, RequestRefusedError

if TYPE_CHECKING:
    from grpo_core.types import GeneratedGroup, GenerateRequest
    from grpo_generator_vllm_colocate.batch import Batch
    from grpo_generator_vllm_colocate.engine import Engine
    from grpo_generator_vllm_colocate.meeting import Meeting

logger = logging.getLogger(__name__)

LOOK = 1.0
"""Seconds between two looks at whether another rank has failed, while vLLM computes."""
GRACE = 60.0
"""Seconds that this process has to come out of vLLM once another rank is known to have failed
there; long enough for that one to save what it can, as its end is also the end of all."""


class Lockstep:
    """The ranks of one engine, from one sync to the next.

    Args:
        meeting: of these ranks, and of nobody else.
        policy_version: of the weights that this rank holds.
        batch: makes a batch of a request, of whichever rank.
    """

    def __init__(
        self,
        engine: Engine,
        meeting: Meeting,
        policy_version: int,
        batch: Callable[[GenerateRequest], Batch[int]],
    ) -> None:
        self._engine, self._meeting = engine, meeting
        self._policy_version, self._batch = policy_version, batch
        self._over: str | None = None
        """Why these ranks do nothing together any more."""

    def sample(self, request: GenerateRequest) -> Iterator[GeneratedGroup]:
        """The groups of this rank's request, after all that any of the ranks wants is sampled.

        Raises:
            PeerError: another rank failed, or does not come.
            SyncError: they hold different weights.
            RequestRefusedError: vLLM does not take a request of one of them.
            EngineError: vLLM failed, or the ranks have drawn different tokens.
        """
        groups = self._together(request)
        assert groups is not None
        yield from groups

    def serve(self) -> None:
        """Take part in what the others sample until none of them wants anything more. Raises as
        ``sample`` does."""
        while self._together(None) is not None:
            pass

    def fail(self, reason: str) -> None:
        """Have the others end as well; what they say of it is that this rank failed."""
        if self._over is None:
            self._over = reason
            self._meeting.fail(reason)

    def end(self) -> None:
        """Nobody waits here any more."""
        self._meeting.end()

    # -- inside ---------------------------------------------------------------------------------

    def _together(self, request: GenerateRequest | None) -> list[GeneratedGroup] | None:
        """One batch of all ranks; this one's groups, or ``None`` if nobody wants any."""
        own_wish = None if request is None else as_json(request)
        said = self._exchanged([self._policy_version, own_wish])
        versions, asked = zip(*said, strict=True)
        if len(set(versions)) > 1:
            raise SyncError(
                f"ranks {list(self._meeting.ranks)} sample with one engine and hold policy "
                f"versions {list(versions)}"
            )
        requests = {
            rank: from_json(wish)
            for rank, wish in zip(self._meeting.ranks, asked, strict=True)
            if wish is not None
        }
        if not requests:
            return None
        batches = {rank: self._batch(wanted) for rank, wanted in requests.items()}
        try:
            outputs = self._sampled(requests, batches)
        except BaseException as error:
            # At once: the others may wait inside vLLM, where nothing else reaches them.
            self.fail(f"{type(error).__name__}: {error}")
            raise
        if len(set(self._exchanged(_digest(outputs)))) > 1:
            self._engine.broken = "its parts have drawn different tokens"
            raise EngineError(
                f"the parts of the vLLM engine in ranks {list(self._meeting.ranks)} have drawn "
                "different tokens for the same prompts, so that each has keys and values of "
                "another text: log-probs would be wrong. The next sync makes a new engine"
            )
        if request is None:
            return []
        own = batches[self._meeting.rank]
        names = [name for name in outputs if name in own.left]
        return [
            group_of(request, *own.take(name, outputs[name]), self._policy_version)
            for name in names
        ]

    def _sampled(
        self, requests: Mapping[int, GenerateRequest], batches: Mapping[int, Batch[int]]
    ) -> dict[str, Any]:
        """vLLM's outputs of all ranks' batches by name, in the order of submission."""
        engine = self._engine
        outputs: dict[str, Any] = {}
        try:
            with _watched(self._meeting):
                engine.wake()
                for rank, batch in batches.items():
                    with _of_rank(rank):
                        batch.submit(engine, group_draws(requests[rank]))
                names = [name for batch in batches.values() for name in batch.left]
                while left := [name for name in names if name not in outputs]:
                    outputs.update(engine.finished(left))
        finally:
            handed_over = [name for batch in batches.values() for name in batch.left]
            engine.release([name for name in handed_over if name not in outputs])
        return {name: outputs[name] for name in names}

    def _exchanged(self, item: Any) -> list[Any]:
        if self._over is not None:
            raise PeerError(f"the ranks of this engine have stopped sampling: {self._over}")
        try:
            return self._meeting.exchange(item)
        except PeerError as error:
            self._over = str(error)
            raise
        except BaseException as error:
            self.fail(f"{type(error).__name__}: {error}")
            raise


@contextmanager
def _of_rank(rank: int) -> Iterator[None]:
    try:
        yield
    except RequestRefusedError as error:
        raise RequestRefusedError(f"of rank {rank}: {error}") from error


def _digest(outputs: dict[str, Any]) -> str:
    drawn = [[list(one.token_ids) for one in output.outputs] for output in outputs.values()]
    return hashlib.sha256(repr(drawn).encode()).hexdigest()


@contextmanager
def _watched(meeting: Meeting) -> Iterator[None]:
    """End this process if another rank fails inside vLLM and this one does not come out of it:
    its main thread waits in a collective that will never be whole, and no exception reaches it."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(LOOK):
            try:
                failure = meeting.failure()
            except PeerError as error:
                failure = str(error)
            if failure is not None and not done.wait(GRACE):
                logger.critical(
                    "%s. This rank (%d) holds a part of the same engine, has waited for it for "
                    "%.0f s within vLLM and cannot go on: the process ends",
                    failure,
                    meeting.rank,
                    GRACE,
                )
                logging.shutdown()
                os._exit(EngineError.exit_code)

    watcher = threading.Thread(target=watch, name="grpo-vllm-colocate-watch", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
