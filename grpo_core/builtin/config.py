"""Options of the built-in components; imports neither torch nor anything else that is heavy."""

from __future__ import annotations

import re
import string
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from grpo_core.settings import Settings


def template_columns(template: str) -> tuple[str, ...]:
    """The columns that a prompt template asks for.

    Raises:
        ValueError: it asks for none, or for more than a column's name in plain braces.
    """
    try:
        fields = [f for f in string.Formatter().parse(template) if f[1] is not None]
    except ValueError as error:
        raise ValueError(
            f"{error}; braces that are meant as text are written twice: {{{{ }}}}"
        ) from None
    for _, name, form, conversion in fields:
        # Attributes and formats of a value are Python, and no business of a data set.
        if not name or form or conversion or re.search(r"[.\[]", name):
            raise ValueError(
                f"{{{name}}} names no column; expected {{column}} alone, and braces that are meant "
                "as text written twice: \\boxed{{}}"
            )
    if not fields:
        raise ValueError("it names no column, so that all prompts would be the same: {question}")
    return tuple(dict.fromkeys(str(name) for _, name, _, _ in fields))


class DatasetConfig(Settings):
    """Prompts from files, from a folder, or from the Hugging Face Hub."""

    path: str | tuple[str, ...] = Field(
        description="Files (.jsonl, .json, .parquet, .csv; * and ** are patterns), a folder saved "
        "by `datasets` or full of data files, or a Hub id such as openai/gsm8k."
    )
    subset: str | None = Field(None, description="Which configuration of a Hub data set: main.")
    split: str = Field("train", description="Split to train on, where the source has splits.")
    revision: str | None = Field(None, description="Branch, tag or commit on the Hub.")
    rename_columns: dict[str, str] = Field(
        default_factory=dict,
        description="Old name to new: {solution: answer}. All other options go by the new ones.",
    )
    prompt_column: str = Field("prompt", description="Holds the prompts: text, or messages.")
    prompt_template: str | None = Field(
        None,
        description="Makes the prompt from columns instead: 'Question: {question}'. Braces that "
        "are meant as text are written twice.",
    )
    conversational: bool = Field(
        False, description="A plain prompt becomes a user message, for models with a chat template."
    )
    system_prompt: str | None = Field(
        None,
        min_length=1,
        description="Put before every conversation; a plain prompt becomes its user message.",
    )
    max_prompts: int | None = Field(
        None, ge=1, description="Train on so many of the prompts at most, chosen by the seed."
    )
    fraction: float = Field(
        1.0, gt=0, le=1, description="Train on this share of the prompts, chosen by the seed."
    )
    max_prompt_chars: int | None = Field(
        None,
        ge=1,
        description="Leave out prompts with more characters, system prompt not counted; how many "
        "is said in the log.",
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

    @field_validator("prompt_template")
    @classmethod
    def _names_columns(cls, value: str | None) -> str | None:
        if value is not None:
            template_columns(value)
        return value

    @model_validator(mode="after")
    def _one_source_of_prompts(self) -> DatasetConfig:
        if self.prompt_template is not None and "prompt_column" in self.model_fields_set:
            raise ValueError(
                "prompt_template and prompt_column both say what the prompt is; keep one of them: "
                f"a template can name the column {{{self.prompt_column}}}"
            )
        new = list(self.rename_columns.values())
        twice = next((name for name in new if new.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"rename_columns gives the name {twice!r} to two columns")
        return self

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


class SourceConfig(DatasetConfig):
    """One source of a mixture: the options of a data set, its name and its weight."""

    label: str = Field(
        "",
        pattern=r"^[A-Za-z0-9._-]*$",
        description="Its name in metrics and prompt ids; by default that of the file or data set.",
    )
    weight: float | None = Field(
        None,
        gt=0,
        description="Draws go to the sources in proportion to their weights; without any, in "
        "proportion to their prompts.",
    )

    @property
    def source(self) -> str:
        """The label, or what follows from the path: ``gsm8k`` for ``openai/gsm8k``."""
        place = self.path if isinstance(self.path, str) else self.path[0]
        return self.label or re.sub(r"[^A-Za-z0-9._-]+", "_", Path(place).stem)


class MixtureConfig(Settings):
    """Prompts from several data sets, each with its own options."""

    sources: tuple[SourceConfig, ...] = Field(
        min_length=1, description="Data sets; each takes the options of the task `dataset`."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> MixtureConfig:
        names = [source.source for source in self.sources]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(
                f"two sources are called {twice!r}; give one of them another label, so that "
                "metrics and prompt ids can tell them apart"
            )
        missing = [source.source for source in self.sources if source.weight is None]
        if missing and len(missing) < len(names):
            raise ValueError(
                f"source {missing[0]!r} has no weight, others have one; give all of them a weight, "
                "or none"
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
