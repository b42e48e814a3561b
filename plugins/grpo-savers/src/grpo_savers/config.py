"""Options of the savers. Nothing here imports torch."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from grpo_core.settings import Settings


class SafetensorsConfig(Settings):
    """What is written of the model, and when."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="Of the saved weights; auto keeps what was trained, so that nothing is lost. "
        "bfloat16 halves a model trained in float32.",
    )
    max_shard_size: str = Field(
        default="5GB",
        pattern=r"^\d+(?:\.\d+)?\s*[KMGT]B$",
        description="Larger models are split into files of at most this size.",
    )
    adapter: Literal["separate", "merged", "both"] = Field(
        default="separate",
        description="Of a LoRA policy: the adapter alone, the base model with the adapter added to "
        "its weights, or the adapter with the merged model in a folder merged/ beside it.",
    )
    at_checkpoints: bool = Field(
        default=False,
        description="Also write models/step-000040/ whenever a checkpoint is written; it is kept "
        "as long as the checkpoint.",
    )
    submodules: dict[str, str] = Field(
        default_factory=dict,
        description="Parts of the model to write in place of all of it, each by the folder it goes "
        "to: {.: policy} writes model.policy alone, {.: policy, critic: value_model} both.",
    )
    leave_out: tuple[str, ...] = Field(
        default=(),
        description="Weights not to write, by the beginning of their names: [value_head].",
    )

    @field_validator("submodules")
    @classmethod
    def _stay_inside(cls, value: dict[str, str]) -> dict[str, str]:
        for folder in value:
            if folder != "." and not re.fullmatch(r"[\w-]+", folder):
                raise ValueError(
                    f"{folder!r} is no plain folder name: use . for the model's own folder, or "
                    "letters, digits, - and _"
                )
        return value


class RolloutsConfig(Settings):
    """Which rollouts are written."""

    every: int = Field(default=1, ge=1, description="Write the rollouts of every n-th step.")


REPO = r"^[\w][\w.-]*(/[\w][\w.-]*)?$"


class HubConfig(Settings):
    """Where on the Hugging Face Hub a run is published. The token is that of ``hf auth login`` or
    ``HF_TOKEN``, and is never written anywhere."""

    repo: str = Field(
        pattern=REPO,
        description="Of the model: organisation/name, or a name of your own. Made if it is new.",
    )
    private: bool = Field(
        default=True,
        description="Nobody else may see it; a repository that is public already is then refused.",
    )
    at_checkpoints: bool = Field(
        default=False,
        description="Also publish the models of checkpoints, each to a branch step-000040; the "
        "saver safetensors must write them (at_checkpoints).",
    )
    rollouts_repo: str | None = Field(
        default=None,
        pattern=REPO,
        description="A data set repository for the files of rollouts/; null publishes none.",
    )
    endpoint: str | None = Field(
        default=None, description="Another server than HF_ENDPOINT or huggingface.co."
    )
    wait_minutes: float = Field(
        default=30.0,
        ge=0,
        description="Longest wait at the end of the run for uploads under way; what is not done by "
        "then stays in outbox/, for `grpo push`.",
    )
