"""What one of several trainer processes does for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def on_main_rank(call: Callable[[], T]) -> T:
    """The main process's result, in every process; its exception too.

    Every process must call this at the same point. Without it each would send its weights to the
    same servers at once.
    """
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return call()
    box: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            box[0] = call()
        except Exception as error:
            box[1] = error
    dist.broadcast_object_list(box, src=0)
    if box[1] is not None:
        raise box[1]
    result: T = box[0]
    return result


def sum_over_ranks(number: int) -> int:
    """Every process must call this at the same point."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return number
    found: list[int | None] = [None] * dist.get_world_size()
    dist.all_gather_object(found, number)
    return sum(each or 0 for each in found)
