"""What vLLM changes for everybody in its process, put back.

Seen with 0.32.0 when an engine is made: torch, random and numpy are seeded anew;
``torch.set_num_threads`` becomes a function that does nothing (on CPUs); LD_PRELOAD,
LOCAL_WORLD_SIZE and others are set in the environment, which child processes inherit; a default
process group is made where there is none, and with it another ``sys.excepthook``. When an engine
ends, it destroys the default process group, whoever made it.
"""

from __future__ import annotations

import importlib
import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

OWN_PREFIX = "VLLM_"
"""Variables that vLLM sets for itself and reads later."""


@contextmanager
def left_as_found() -> Iterator[None]:
    """Random state, modes, environment and hooks are what they were, after errors too."""
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    rng = torch.get_rng_state()
    device_rng = torch.cuda.get_rng_state_all() if cuda else []
    python_rng, numpy_rng = random.getstate(), np.random.get_state()
    device = torch.cuda.current_device() if cuda else None
    threads, set_threads = torch.get_num_threads(), torch.set_num_threads
    grad, dtype = torch.is_grad_enabled(), torch.get_default_dtype()
    precision = torch.get_float32_matmul_precision()
    hook, environment = sys.excepthook, dict(os.environ)
    try:
        yield
    finally:
        torch.set_rng_state(rng)
        if device_rng:
            torch.cuda.set_rng_state_all(device_rng)
        if device is not None:
            torch.cuda.set_device(device)
        random.setstate(python_rng)
        np.random.set_state(numpy_rng)
        # First the function, then the number, which a function that does nothing would not set.
        torch.set_num_threads = set_threads
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        torch.set_grad_enabled(grad)
        torch.set_default_dtype(dtype)
        if torch.get_float32_matmul_precision() != precision:
            torch.set_float32_matmul_precision(precision)
        sys.excepthook = hook
        _put_back(environment)


def _put_back(environment: dict[str, str]) -> None:
    for name in os.environ.keys() | environment.keys():
        if name.startswith(OWN_PREFIX) or os.environ.get(name) == environment.get(name):
            continue
        if name in environment:
            os.environ[name] = environment[name]
        else:
            del os.environ[name]


def default_group_exists() -> bool:
    """Whether this process has a default process group."""
    return dist.is_available() and dist.is_initialized()


@contextmanager
def default_group_kept() -> Iterator[None]:
    """Groups made by vLLM may be destroyed here, the trainer's default one not: without it the next
    gradient would not be averaged over the ranks, or the next collective would fail."""
    destroy = dist.destroy_process_group

    def all_but_the_default(group: Any = None) -> None:
        if group is not None and group is not dist.group.WORLD:
            destroy(group)

    dist.destroy_process_group = all_but_the_default
    try:
        yield
    finally:
        dist.destroy_process_group = destroy


@contextmanager
def own_shared_memory(token: str) -> Iterator[None]:
    """Parts of an engine on CPUs made here meet in shared memory of this name.

    By vLLM's own name for ranks of torchrun (0.32.0) those of every run on the machine would be
    ``-tp:0-[0-1]-cpushm``: a second run could not start beside the first, nor any run after one
    that was killed, which leaves its segments behind.
    """
    module = importlib.import_module("vllm.distributed.device_communicators.cpu_communicator")
    owner = module._CPUSHMDistributed
    name_of = owner.make_group_name

    def own_name(communicator: Any) -> str:
        return f"{token}{name_of(communicator).replace('/', '')}"

    owner.make_group_name = staticmethod(own_name)
    try:
        yield
    finally:
        owner.make_group_name = staticmethod(name_of)
