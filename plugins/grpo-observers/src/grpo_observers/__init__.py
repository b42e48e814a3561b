"""Runs on tracking services: W&B, Trackio, Comet and MLflow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpo_core.lazy import lazy_exports

__getattr__ = lazy_exports(
    __name__,
    {
        "Comet": "grpo_observers.comet",
        "CometConfig": "grpo_observers.config",
        "MLflow": "grpo_observers.mlflow",
        "MLflowConfig": "grpo_observers.config",
        "Trackio": "grpo_observers.trackio",
        "TrackioConfig": "grpo_observers.config",
        "Wandb": "grpo_observers.wandb",
        "WandbConfig": "grpo_observers.config",
    },
)

__all__ = [
    "Comet",
    "CometConfig",
    "MLflow",
    "MLflowConfig",
    "Trackio",
    "TrackioConfig",
    "Wandb",
    "WandbConfig",
]

if TYPE_CHECKING:
    from grpo_observers.comet import Comet
    from grpo_observers.config import CometConfig, MLflowConfig, TrackioConfig, WandbConfig
    from grpo_observers.mlflow import MLflow
    from grpo_observers.trackio import Trackio
    from grpo_observers.wandb import Wandb
