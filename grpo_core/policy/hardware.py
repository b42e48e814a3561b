"""What this machine does well: the number of threads and the precision of a run."""

from __future__ import annotations

import logging
import os
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from grpo_core.settings import ModelSettings

logger = logging.getLogger(__name__)

WORTH = 1.25
"""How much faster all threads must be than one. On a machine with other work two threads were
measured 2.5 to 5 times slower than one, since the OpenMP threads wait for each other; idle, 1.4
times faster."""


def set_threads(wanted: int | None) -> str:
    """Choose how many CPU threads torch computes with.

    Args:
        wanted: that many; ``None`` leaves it to ``OMP_NUM_THREADS`` where that is set, and
            otherwise times products of matrices on one thread and on all.

    Returns:
        How many, and why. Sums are split among threads, so another number of them rounds
        otherwise in the last bit: whoever repeats a run sets it.
    """
    available = torch.get_num_threads()
    if wanted is not None:
        torch.set_num_threads(wanted)
        return f"{wanted}, as set"
    if os.environ.get("OMP_NUM_THREADS"):
        return f"{available}, by OMP_NUM_THREADS"
    if available == 1:
        return "1, as there are no more"
    seconds: dict[int, list[float]] = {1: [], available: []}
    for _ in range(5):
        # In turn, so that what else the machine does meets both.
        for threads, found in seconds.items():
            torch.set_num_threads(threads)
            found.append(_seconds())
    gain = median(seconds[1]) / median(seconds[available])
    threads = available if gain >= WORTH else 1
    torch.set_num_threads(threads)
    return f"{threads}, since {available} were {gain:.1f} times as fast as 1 at the start"


def keep_threads(before: int, wanted: int | None) -> str | None:
    """Go on with the number of threads that a run had before, unless it was set otherwise.

    Returns:
        How many, and why; ``None`` when nothing changes.
    """
    now = torch.get_num_threads()
    if now == before:
        return None
    if wanted is None and not os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(before)
        return f"{before}, as before the resume"
    logger.warning(
        "the run had %d CPU threads and has %d now, so that sums round otherwise in the last bit; "
        "set model.threads to %d to go on with the same bits",
        before,
        now,
        before,
    )
    return None


def autocast_dtype(settings: ModelSettings) -> tuple[torch.dtype | None, str]:
    """bf16 on GPUs that have it, or none; and why.

    On CPUs only if asked for: on one without bf16 units it was measured 5 times slower than
    float32; those with them have not been measured.
    """
    if settings.mixed_precision != "auto":
        return torch.bfloat16 if settings.mixed_precision == "bf16" else None, "as set"
    if settings.dtype not in ("auto", "float32"):
        return None, "as model.dtype is set"
    if not torch.cuda.is_available():
        return None, "since bf16 is only used on a CPU when it is asked for"
    if not torch.cuda.is_bf16_supported():
        return None, "since this GPU has no bf16"
    return torch.bfloat16, "since this GPU has bf16"


def _seconds() -> float:
    """Wall time of some products as a small model makes them: 0.3 GFLOP each."""
    a, b = torch.ones(512, 512), torch.ones(512, 512)
    start = perf_counter()
    for _ in range(8):
        a @ b
    return perf_counter() - start
