"""Holds requests to a server back while its weights change, and knows how many are on the way."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from grpo_generator_vllm_server.errors import NoServerLeftError

CLOSED = "generator 'vllm-server' has been closed"


class Gate:
    """Every request passes it; a sync shuts it and waits until nobody is inside.

    So each request lives under one version of the weights, and whoever is inside knows which. vLLM
    itself does not say: of one request, some completions may end before a pause and others begin
    after it.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._shut = False
        self._ended = False
        self._inside = 0

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Wait while it is shut, then be counted.

        Raises:
            NoServerLeftError: the generator has been closed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ended or not self._shut)
            if self._ended:
                raise NoServerLeftError(CLOSED)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @property
    def is_shut(self) -> bool:
        return self._shut

    @property
    def inside(self) -> int:
        return self._inside

    def shut(self) -> None:
        with self._changed:
            self._shut = True

    def open(self) -> None:
        with self._changed:
            self._shut = False
            self._changed.notify_all()

    def end(self) -> None:
        """Whoever waits, or comes later, gets an error."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wait_empty(self, seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: not self._inside, seconds)
