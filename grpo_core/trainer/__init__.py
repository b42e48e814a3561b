"""The loop and what it needs around it."""

from grpo_core.trainer.evaluation import evaluate_model
from grpo_core.trainer.loop import train
from grpo_core.trainer.result import RunResult
from grpo_core.trainer.run import Run

__all__ = ["Run", "RunResult", "evaluate_model", "train"]
