"""Options of the observers. Nothing here imports torch or a tracking library."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from grpo_core.settings import Settings


class TrackerConfig(Settings):
    """What all of them have."""

    mode: Literal["online", "offline", "disabled"] = Field(
        "online",
        description="offline records on this machine only; disabled does nothing at all, and does "
        "not need the library.",
    )
    project: str = Field("grpo-core", min_length=1, description="Where the service puts the run.")
    run_name: str | None = Field(
        None, min_length=1, description="Of the run; the name of the run folder when not given."
    )
    tags: tuple[str, ...] = Field((), description="Labels to find the run by.")
    samples: int = Field(
        8, ge=0, description="Rows of each table of samples; 0 sends no text at all."
    )
    every: int = Field(
        10,
        ge=0,
        description="Steps between two tables of training rollouts; 0 sends those of evaluations "
        "only.",
    )
    characters: int = Field(
        20_000, ge=100, description="Longer prompts and completions lose their middle."
    )
    timeout: float = Field(
        30.0,
        gt=0,
        description="Seconds that a run waits for the service, once at its start and once at its "
        "end. In between it never waits.",
    )


class WandbConfig(TrackerConfig):
    """Weights & Biases. The key comes from `wandb login` or WANDB_API_KEY, never from here."""

    entity: str | None = Field(None, description="Team or user; W&B's default when not given.")
    group: str | None = Field(None, description="Runs of one group are shown together.")
    base_url: str | None = Field(None, description="Of a server of your own.")


class TrackioConfig(TrackerConfig):
    """Trackio. Without a Space or a server, runs are kept on this machine."""

    group: str | None = Field(None, description="Runs of one group are shown together.")
    space: str | None = Field(
        None, description="A Hugging Face Space such as me/runs; made when it does not exist."
    )
    private: bool = Field(True, description="Whether a Space that is made is private.")
    server: str | None = Field(
        None,
        description="URL of a Trackio server of your own; its write token comes from "
        "TRACKIO_WRITE_TOKEN.",
    )


class CometConfig(TrackerConfig):
    """Comet. The key comes from `comet login` or COMET_API_KEY, never from here."""

    workspace: str | None = Field(None, description="Comet's default when not given.")


class MLflowConfig(TrackerConfig):
    """MLflow. `project` is the experiment's name."""

    group: str | None = Field(None, description="Sent as the tag `group`.")
    tracking_uri: str | None = Field(
        None,
        description="A server, or a store such as sqlite:///mlflow.db; MLFLOW_TRACKING_URI when "
        "not given, and without that mlflow.db in the run folder.",
    )
