"""The whole config as a pydantic model. What a role block may hold beyond its name depends on
what is installed; see ``grpo_core.config.components``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from grpo_core.plugins import Role
from grpo_core.settings import (
    CheckpointSettings,
    EvaluationSettings,
    ModelSettings,
    OnError,
    OptimizerSettings,
    RewardExecution,
    SamplingParams,
    Settings,
    TrainSettings,
)


class Block(BaseModel):
    """A component: its name, and beside it its options.

    In YAML either ``loss: dapo`` or ``loss: {name: dapo, clip_high: 0.3}``.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = Field(
        min_length=1,
        description="As registered by a plugin, or an import path: package.module:Name, "
        "folder/file.py:Name.",
    )

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, data: Any) -> Any:
        return {"name": data} if isinstance(data, str) else data

    @property
    def options(self) -> Mapping[str, Any]:
        """What was given beside the block's own keys."""
        return self.model_extra or {}


class RewardBlock(Block):
    """A reward, and what the run does with its scores."""

    model_config = ConfigDict(allow_inf_nan=False)

    weight: float = Field(1.0, description="Rewards are summed with these weights; 0 only watches.")
    label: str | None = Field(
        None, min_length=1, description="Name in metrics; the reward's own when null."
    )
    on_error: OnError = Field(
        "stop",
        description="After the last attempt: stop the run, take the rollout out of its group, or "
        "leave its whole group out.",
    )
    execution: RewardExecution = Field(
        RewardExecution(), description="Timeout, retries, isolation; see below."
    )


class RunConfig(Settings):
    """One run. Everything that is not given has the default shown."""

    model: ModelSettings
    task: Block
    train: TrainSettings
    output: str = Field(
        "runs/run", min_length=1, description="The run's folder; runs/<file name> by default."
    )
    sampling: SamplingParams = SamplingParams()
    optimizer: OptimizerSettings = OptimizerSettings()
    evaluation: EvaluationSettings | None = Field(None, description="null: no evaluation.")
    checkpoints: CheckpointSettings | None = Field(
        CheckpointSettings(), description="null: none, and a killed run starts again."
    )
    generator: Block = Block(name="hf")
    environment: Block = Block(name="single-turn")
    rewards: tuple[RewardBlock, ...] = Field((), description="Empty: those that the task brings.")
    advantage: Block | None = Field(None, description="null: the one that the loss is used with.")
    loss: Block = Block(name="dapo")
    reference: Block = Block(name="none")
    savers: tuple[Block, ...] = (Block(name="safetensors"), Block(name="rollouts"))
    observers: tuple[Block, ...] = (
        Block(name="console"),
        Block(name="jsonl"),
        Block(name="report"),
    )


SECTIONS: dict[str, type[Settings]] = {
    "model": ModelSettings,
    "train": TrainSettings,
    "sampling": SamplingParams,
    "optimizer": OptimizerSettings,
    "evaluation": EvaluationSettings,
    "checkpoints": CheckpointSettings,
}
"""The parts of a config that are the same whatever is installed."""

SINGLE_BLOCKS: dict[str, Role] = {
    "task": "task",
    "generator": "generator",
    "environment": "environment",
    "advantage": "advantage",
    "loss": "loss",
    "reference": "reference",
}
"""Keys that hold one component, and its role."""

LIST_BLOCKS: dict[str, Role] = {"rewards": "reward", "savers": "saver", "observers": "observer"}
"""Keys that hold a list of components."""


def is_block(path: tuple[str | int, ...]) -> bool:
    """Whether a component stands at ``path``: ``("loss",)``, ``("rewards", 0)``."""
    return (len(path) == 1 and path[0] in SINGLE_BLOCKS) or (
        len(path) == 2 and path[0] in LIST_BLOCKS
    )
