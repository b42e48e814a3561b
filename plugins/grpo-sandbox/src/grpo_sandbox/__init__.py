"""Model-written code: run in isolation, graded where it cannot reach."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpo_core.lazy import lazy_exports

__getattr__ = lazy_exports(
    __name__,
    {
        "Code": "grpo_sandbox.reward",
        "CodeConfig": "grpo_sandbox.config",
        "Executor": "grpo_sandbox.program",
        "Finished": "grpo_sandbox.program",
        "Grader": "grpo_sandbox.grading",
        "IsolationError": "grpo_sandbox.program",
        "Limits": "grpo_sandbox.program",
        "LocalExecutor": "grpo_sandbox.local",
        "LocalSettings": "grpo_sandbox.config",
        "PairExecutor": "grpo_sandbox.program",
        "PistonExecutor": "grpo_sandbox.piston",
        "PistonSettings": "grpo_sandbox.config",
        "Program": "grpo_sandbox.program",
        "SandboxError": "grpo_sandbox.program",
        "run_command": "grpo_sandbox.running",
        "run_python": "grpo_sandbox.running",
    },
)

__all__ = [
    "Code",
    "CodeConfig",
    "Executor",
    "Finished",
    "Grader",
    "IsolationError",
    "Limits",
    "LocalExecutor",
    "LocalSettings",
    "PairExecutor",
    "PistonExecutor",
    "PistonSettings",
    "Program",
    "SandboxError",
    "run_command",
    "run_python",
]

if TYPE_CHECKING:
    from grpo_sandbox.config import CodeConfig, LocalSettings, PistonSettings
    from grpo_sandbox.grading import Grader
    from grpo_sandbox.local import LocalExecutor
    from grpo_sandbox.piston import PistonExecutor
    from grpo_sandbox.program import (
        Executor,
        Finished,
        IsolationError,
        Limits,
        PairExecutor,
        Program,
        SandboxError,
    )
    from grpo_sandbox.reward import Code
    from grpo_sandbox.running import run_command, run_python
