"""Options of the built-in components; imports neither torch nor anything else that is heavy."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from grpo_core.settings import Settings


class DatasetConfig(Settings):
    """Prompts from files, from a folder, or from the Hugging Face Hub."""

    path: str | tuple[str, ...] = Field(
        description="Files (.jsonl, .json, .parquet, .csv; * and ** are patterns), a folder saved "
        "by `datasets` or full of data files, or a Hub id such as openai/gsm8k."
    )
    subset: str | None = Field(None, description="Which configuration of a Hub data set: main.")
    split: str = Field("train", description="Split to train on, where the source has splits.")
    revision: str | None = Field(None, description="Branch, tag or commit on the Hub.")
    prompt_column: str = Field("prompt", description="Holds the prompts: text, or messages.")
    system_prompt: str | None = Field(
        None,
        min_length=1,
        description="Put before every conversation; a plain prompt becomes its user message.",
    )
    eval_path: str | tuple[str, ...] | None = Field(
        None, description="Held-out prompts from another place, in the same forms as path."
    )
    eval_split: str | None = Field(
        None, description="Held-out prompts from this split, of eval_path if given, else of path."
    )
    eval_fraction: float = Field(
        0.0, ge=0, lt=1, description="Hold out this share of the distinct prompts, by the seed."
    )

    @model_validator(mode="after")
    def _one_source_of_eval(self) -> DatasetConfig:
        if self.eval_fraction and (self.eval_path or self.eval_split):
            other = "eval_path" if self.eval_path else "eval_split"
            raise ValueError(
                f"eval_fraction ({self.eval_fraction}) and {other} both say what is held out; "
                "keep one of them"
            )
        if self.eval_split == self.split and not self.eval_path:
            raise ValueError(
                f"eval_split is {self.eval_split!r}, the split to train on; use another split, or "
                "eval_fraction to hold out a part of this one"
            )
        return self


class ConsoleConfig(Settings):
    """What a person sees while a run goes on."""

    progress: Literal["auto", "live", "plain"] = Field(
        "auto", description="auto: a live display in a terminal, one line per step elsewhere."
    )
    samples: int = Field(
        3, ge=0, description="Completions of held-out prompts shown before and after training."
    )
