"""The loop and what it needs around it."""

from grpo_core.trainer.loop import train
from grpo_core.trainer.run import Run, RunResult

__all__ = ["Run", "RunResult", "train"]
