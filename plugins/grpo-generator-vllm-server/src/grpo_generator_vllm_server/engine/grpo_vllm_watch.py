"""Whether somebody else has changed a worker's weights: whoever has the token can, by vLLM's routes
for it or through `/collective_rpc`, and the mark of what was given here would still be there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

TOUCHING = (
    "load_model",
    "reload_weights",
    "reset_weights",
    "sleep",
    "start_weight_update",
    "update_config",
    "update_weights",
)
"""A worker's own methods after which it may hold other weights."""


def watch(worker: Any) -> None:
    """From now on, a call of one of these takes the mark away, unless it comes from ``ours``."""
    if hasattr(worker, "_grpo_ours"):
        return
    worker._grpo_ours = False
    for name in TOUCHING:
        if hasattr(worker, name):
            setattr(worker, name, _watched(worker, name, getattr(worker, name)))


@contextmanager
def ours(worker: Any) -> Iterator[None]:
    """What is called inside is the trainer's doing."""
    watch(worker)
    worker._grpo_ours = True
    try:
        yield
    finally:
        worker._grpo_ours = False


def _watched(worker: Any, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    def watched(*arguments: Any, **options: Any) -> Any:
        if not worker._grpo_ours:
            worker._grpo_held, worker._grpo_broken = None, f"somebody else has called {name}"
        return method(*arguments, **options)

    return watched
