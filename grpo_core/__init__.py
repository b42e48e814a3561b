"""GRPO post-training of language models: one small loop, every role a pip-installable plugin.

Everything public is importable from here and is loaded on first use, so that ``import grpo_core``
costs nothing and reaches neither torch nor pydantic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpo_core.lazy import lazy_exports

__version__ = "0.1.0"

__getattr__ = lazy_exports(
    __name__,
    {
        "BuildContext": "grpo_core.protocols",
        "CheckpointSettings": "grpo_core.settings",
        "EvaluationSampling": "grpo_core.settings",
        "EvaluationSettings": "grpo_core.settings",
        "LoraSettings": "grpo_core.settings",
        "ModelSettings": "grpo_core.settings",
        "OptimizerSettings": "grpo_core.settings",
        "Policy": "grpo_core.policy",
        "Reward": "grpo_core.rewards",
        "Run": "grpo_core.trainer",
        "SamplingParams": "grpo_core.settings",
        "TrainSettings": "grpo_core.settings",
        "evaluate_model": "grpo_core.trainer",
        "hookimpl": "grpo_core.hookspecs",
        "load_run": "grpo_core.run",
        "train": "grpo_core.trainer",
    },
)

__all__ = [
    "BuildContext",
    "CheckpointSettings",
    "EvaluationSampling",
    "EvaluationSettings",
    "LoraSettings",
    "ModelSettings",
    "OptimizerSettings",
    "Policy",
    "Reward",
    "Run",
    "SamplingParams",
    "TrainSettings",
    "__version__",
    "evaluate_model",
    "hookimpl",
    "load_run",
    "train",
]

if TYPE_CHECKING:
    from grpo_core.hookspecs import hookimpl
    from grpo_core.policy import Policy
    from grpo_core.protocols import BuildContext
    from grpo_core.rewards import Reward
    from grpo_core.run import load_run
    from grpo_core.settings import (
        CheckpointSettings,
        EvaluationSampling,
        EvaluationSettings,
        LoraSettings,
        ModelSettings,
        OptimizerSettings,
        SamplingParams,
        TrainSettings,
    )
    from grpo_core.trainer import Run, evaluate_model, train
