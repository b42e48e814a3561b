"""Registration; imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpo_core import hookimpl

if TYPE_CHECKING:
    from grpo_core.plugins.registrar import Register


@hookimpl
def grpo_register_observers(register: Register) -> None:
    register(
        "comet",
        "grpo_observers.comet:Comet",
        config="grpo_observers.config:CometConfig",
        summary="Metrics and samples on Comet (pip install grpo-core[comet]).",
    )
    register(
        "mlflow",
        "grpo_observers.mlflow:MLflow",
        config="grpo_observers.config:MLflowConfig",
        summary="Metrics and samples in MLflow (pip install grpo-core[mlflow]).",
    )
    register(
        "trackio",
        "grpo_observers.trackio:Trackio",
        config="grpo_observers.config:TrackioConfig",
        summary="Metrics and samples in Trackio (pip install grpo-core[trackio]).",
    )
    register(
        "wandb",
        "grpo_observers.wandb:Wandb",
        config="grpo_observers.config:WandbConfig",
        summary="Metrics and samples on Weights & Biases (pip install grpo-core[wandb]).",
    )
