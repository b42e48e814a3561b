"""Options of the judge."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from grpo_core.endpoint import EndpointSettings, Url
from grpo_core.settings import Settings

Mode = Literal["score", "rubric", "pairwise"]
TAKEN = {"model", "messages", "temperature", "max_tokens", "response_format", "n", "stream"}
"""Keys of a request that have options of their own, or one possible value."""


class Criterion(Settings):
    """One line of a rubric. Example: ``Criterion(text="names a source", weight=2)``."""

    text: str = Field(
        min_length=1,
        description="What the answer should do, or with a negative weight should not do.",
    )
    weight: float = Field(default=1.0, description="Points when it is met; not 0.")

    @model_validator(mode="after")
    def _counts(self) -> Criterion:
        if self.weight == 0:
            raise ValueError(f"criterion {self.text!r} has weight 0 and would decide nothing")
        return self


class LLMJudgeConfig(EndpointSettings):
    """Who judges, what is asked, and how."""

    url: Url = Field(
        description="Of an OpenAI-compatible server, up to and with /v1: http://localhost:8000/v1."
    )
    model: str = Field(min_length=1, description="The judge's name on that server.")
    mode: Mode = Field(
        default="score",
        description="score: a number on a scale; rubric: which criteria are met; pairwise: which "
        "of two answers is better.",
    )
    instructions: str | None = Field(
        default=None,
        min_length=1,
        description="What makes an answer good, in words for the judge; null asks for a correct, "
        "complete and helpful answer.",
    )
    scale: tuple[int, int] = Field(
        default=(0, 10), description="mode score: worst and best; they become 0.0 and 1.0."
    )
    criteria: tuple[Criterion, ...] = Field(default=(), description="mode rubric: the criteria.")
    criteria_column: str | None = Field(
        default=None,
        description="mode rubric: column with each prompt's: a list of texts or {text, weight}.",
    )
    reference_column: str | None = Field(
        default=None,
        description="Column with a reference answer: shown to the judge, and in mode pairwise the "
        "opponent in place of the group's other completions.",
    )
    after: str | None = Field(
        default=None,
        min_length=1,
        description="Only what stands behind the last occurrence of this (</think>, say) is "
        "judged; a completion without it gets 0.0.",
    )
    max_tokens: int | None = Field(
        default=1024,
        ge=1,
        description="Of the judge's reply, its reasoning included; null leaves it out, for servers "
        "that want another key (request_options).",
    )
    temperature: float | None = Field(
        default=0.0,
        ge=0,
        description="Of the judge; null leaves it out, for models that accept none.",
    )
    response_format: Literal["json_schema", "json_object", "none"] = Field(
        default="json_schema",
        description="How the server is told to write JSON; none for servers that know neither.",
    )
    request_options: dict[str, Any] = Field(
        default_factory=dict,
        description="Further keys of each request: {seed: 0, reasoning_effort: low}.",
    )
    cache_path: str | None = Field(
        default=None,
        description="SQLite file that keeps verdicts between runs; null keeps them in memory.",
    )
    log_path: str | None = Field(
        default=None, description="JSONL file to which every reply of the judge is added."
    )

    @model_validator(mode="after")
    def _fits_its_mode(self) -> LLMJudgeConfig:
        rubrics = bool(self.criteria) + (self.criteria_column is not None)
        if self.mode == "rubric" and rubrics != 1:
            raise ValueError("mode rubric takes either criteria or criteria_column")
        if self.mode != "rubric" and rubrics:
            raise ValueError(f"criteria are for mode rubric, not {self.mode}")
        if self.scale[0] >= self.scale[1]:
            raise ValueError(f"scale must be worst < best, got {list(self.scale)}")
        if self.criteria and not any(c.weight > 0 for c in self.criteria):
            raise ValueError("a rubric needs a criterion with a positive weight")
        taken = sorted(TAKEN & self.request_options.keys())
        if taken:
            raise ValueError(
                f"request_options must not set {taken[0]!r}: it has an option of its own, or only "
                "one value that works"
            )
        return self
