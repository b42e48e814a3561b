"""Processes on CPUs leave their group before they end."""

from __future__ import annotations

import atexit
import time
from functools import cache

import torch.distributed as dist

SECONDS = 0.2
"""Many turns of a thread on a busy machine, of which gloo's need one."""


@cache
def leave_gloo_at_exit() -> None:
    """Else a finished run may abort (1 of 20 exits): gloo's threads drop the tensors of the last
    collective only after they have reported it done. For that they want the GIL, and a thread that
    wants the GIL of an interpreter that is ending ends the process. NCCL's group stays, since
    leaving it waits for ranks that may have failed."""

    def leave() -> None:
        if dist.is_available() and dist.is_initialized() and dist.get_backend() == "gloo":
            # Without the GIL. Leaving alone does not end the threads while a module wrapped for
            # data parallelism still has the group.
            time.sleep(SECONDS)
            dist.destroy_process_group()

    atexit.register(leave)
