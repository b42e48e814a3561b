"""Options of the task and of its reward."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from grpo_core.settings import Settings


class DatasetSpec(Settings):
    """One reasoning-gym dataset."""

    dataset: str = Field(description="Its registered name: chain_sum, countdown, sudoku.")
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="Fields of its config dataclass; size and seed are the task's.",
    )
    weight: float | None = Field(
        None, gt=0, description="Draws go to the datasets in proportion to their weights."
    )
    label: str = Field(
        "",
        pattern=r"^[A-Za-z0-9._-]*$",
        description="Its name in metrics and prompt ids, where one dataset is given twice.",
    )

    @property
    def source(self) -> str:
        return self.label or self.dataset


class ReasoningGymConfig(Settings):
    """Which datasets, and how many prompts of each."""

    dataset: str | None = Field(None, description="One dataset; several go into `datasets`.")
    options: dict[str, Any] = Field(
        default_factory=dict, description="Of that one dataset: {min_terms: 2, max_terms: 3}."
    )
    datasets: tuple[DatasetSpec, ...] = Field((), description="Several datasets with weights.")
    size: int = Field(500, ge=1, description="Training prompts of each dataset.")
    eval_size: int = Field(0, ge=0, description="Held-out prompts of each dataset.")
    seed: int | None = Field(None, ge=0, description="Of the generators; null is the run's.")
    conversational: bool = Field(True, description="Messages; false: plain text.")
    system_prompt: str | None = Field(
        "default",
        description="Name of one of reasoning_gym's (default, DeepSeekZero, simple, direct, "
        "chain_of_draft), or a text, or null for none. Plain prompts get it in front.",
    )

    @model_validator(mode="after")
    def _one_way(self) -> ReasoningGymConfig:
        if (self.dataset is None) == (not self.datasets):
            raise ValueError("give either `dataset` or `datasets`")
        if self.datasets and self.options:
            raise ValueError("`options` belong to `dataset`; each of `datasets` has its own")
        names = [spec.source for spec in self.datasets]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two datasets are called {twice!r}; give one of them a label")
        weighted = [spec for spec in self.datasets if spec.weight is not None]
        if weighted and len(weighted) < len(names):
            raise ValueError("give all of `datasets` a weight, or none")
        for spec in self.specs():
            taken = sorted({"size", "seed"} & spec.options.keys())
            if taken:
                raise ValueError(
                    f"{spec.dataset}: {taken[0]} is an option of the task, not of the dataset"
                )
        return self

    def specs(self) -> tuple[DatasetSpec, ...]:
        """The datasets, however they were given."""
        if self.dataset is not None:
            return (DatasetSpec(dataset=self.dataset, options=self.options),)
        return self.datasets


class ReasoningGymRewardConfig(Settings):
    """Where the answer stands."""

    answer_tag: str | None = Field(
        "answer",
        pattern=r"^[A-Za-z_][A-Za-z0-9_-]*$",
        description="The last <answer>...</answer> is scored; null: the whole completion.",
    )
