"""Processes on CPUs leave their group before they end."""

from __future__ import annotations

import atexit
from functools import cache

import torch.distributed as dist


@cache
def leave_gloo_at_exit() -> None:
    """Else a finished run may abort (1 of 20 exits): gloo's threads drop their tensors, for which
    they want the GIL of an interpreter that is gone. NCCL's group stays, since leaving it waits for
    ranks that may have failed."""

    def leave() -> None:
        if dist.is_available() and dist.is_initialized() and dist.get_backend() == "gloo":
            dist.destroy_process_group()

    atexit.register(leave)
