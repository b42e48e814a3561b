"""Copied beside a config by ``test_kill.py``: an observer that ends its process at a chosen call.

``SABOTAGE=17`` sends SIGKILL before the 17th of the watched calls: everything that changes a file
or folder, and the beginnings of sampling, scoring, backward and the optimizer's step.
``SABOTAGE=count`` writes down how many there are, by name.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

import grpo_core.trainer.checkpoints.folder as folder
from grpo_core import hookimpl
from grpo_core.policy import Policy
from grpo_core.scoring import Scorer
from grpo_generator_hf import HFGenerator

WATCHED = [
    *[(os, name) for name in ("fsync", "mkdir", "rename", "replace", "rmdir", "unlink")],
    (HFGenerator, "generate"),
    (Scorer, "score"),
    (Policy, "backward"),
    (Policy, "step"),
]


class Sabotage:
    def __init__(self) -> None:
        self.calls: list[str] = []
        self.limit = os.environ.get("SABOTAGE", "")
        for owner, name in WATCHED:
            setattr(owner, name, self.watched(getattr(owner, name), name))
        folder.save_file = self.torn

    def watched(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.count(name)
            return function(*args, **kwargs)

        return call

    def torn(self, tensors: dict[str, torch.Tensor], path: Path) -> None:
        """As the real one; killed here, half of the file is there."""
        content = safetensors.torch.save(tensors)
        path.write_bytes(content[: len(content) // 2])
        self.count("write")
        path.write_bytes(content)

    def count(self, name: str) -> None:
        self.calls.append(name)
        if self.limit.isdigit() and len(self.calls) == int(self.limit):
            os.kill(os.getpid(), signal.SIGKILL)

    @hookimpl
    def grpo_run_end(self, event: Any) -> None:
        if self.limit == "count":
            (event.run_dir / "calls.txt").write_text("\n".join(self.calls))
