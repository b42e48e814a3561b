"""Several servers as one, and what is known of each."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING

from grpo_generator_vllm_server.client import Server
from grpo_generator_vllm_server.errors import NoServerLeftError
from grpo_generator_vllm_server.gate import CLOSED, Gate

if TYPE_CHECKING:
    from grpo_generator_vllm_server.sync import Facts, Published

logger = logging.getLogger(__name__)


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
    busy: Fraction = Fraction(0)
    """Prompts that it has, or parts of their groups."""
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
