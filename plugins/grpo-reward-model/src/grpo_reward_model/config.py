"""Options of reward models; none of them is the policy's."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from grpo_core.endpoint import EndpointSettings
from grpo_core.settings import Settings

TooLong = Literal["fail", "abstain", "truncate-left"]


class RenderingConfig(Settings):
    """How a rollout becomes the reward model's tokens: by its own tokenizer and chat template."""

    chat_template: str | None = Field(
        default=None, description="A Jinja file in place of the tokenizer's."
    )
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="Passed to the chat template."
    )
    add_special_tokens: bool = Field(
        default=False,
        description="Let the tokenizer add its own (BOS, [CLS]) to plain text; never to "
        "conversations, whose template writes them. Off as in TRL; encoders like BERT need it.",
    )


class RewardModelConfig(RenderingConfig):
    """Which model, in which numbers, and how it is asked."""

    path: str = Field(description="A folder, or a Hugging Face Hub id.")
    revision: str | None = Field(default=None, description="Branch, tag or commit on the Hub.")
    tokenizer: str | None = Field(
        default=None, description="Folder or Hub id of the tokenizer; null is path."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="Of the weights; auto is as saved on a GPU, and float32 on a CPU.",
    )
    device: str = Field(
        default="auto", description="cpu, cuda, cuda:1 ...; auto is the current GPU, else the CPU."
    )
    attn_implementation: str | None = Field(
        default=None, description="As in transformers: sdpa, eager, flash_attention_2 ..."
    )
    trust_remote_code: bool = Field(
        default=False, description="Run Python code from the model's folder."
    )
    output: int | str | None = Field(
        default=None,
        description="Which output is the score, by index or label, where the model has several.",
    )
    tokens_per_batch: int = Field(
        default=16384, ge=1, description="Tokens of one forward pass, padding included."
    )
    max_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Longest input; null is what model and tokenizer were made for.",
    )
    too_long: TooLong = Field(
        default="fail",
        description="What becomes of a longer input: fail (on_error decides), abstain, or "
        "truncate-left, which drops the beginning of the prompt.",
    )

    @field_validator("path", "tokenizer", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        return str(value) if isinstance(value, Path) else value


Protocol = Literal["vllm-classify", "vllm-pooling", "tei-predict"]


class RewardModelServerConfig(EndpointSettings, RenderingConfig):
    """Which server, and how it is asked."""

    protocol: Protocol = Field(
        description="vllm-classify: POST /classify; vllm-pooling: POST /pooling; tei-predict: "
        "POST /predict of text-embeddings-inference."
    )
    model: str | None = Field(
        default=None, min_length=1, description="The model's name on a vLLM server."
    )
    tokenizer: str | None = Field(
        default=None,
        description="Folder or Hub id of the reward model's tokenizer, which renders "
        "conversations; vLLM is then sent token ids. null: plain text, tokenized by the server.",
    )
    tokenizer_revision: str | None = Field(
        default=None, description="Branch, tag or commit on the Hub."
    )
    output: int | str | None = Field(
        default=None,
        description="Which output is the score where the model has several: an index with vLLM, "
        "a label with text-embeddings-inference.",
    )
    texts_per_request: int = Field(default=16, ge=1, description="Rollouts in one request.")

    @model_validator(mode="after")
    def _fits_its_protocol(self) -> RewardModelServerConfig:
        vllm = self.protocol != "tei-predict"
        if vllm and self.model is None:
            raise ValueError(f"protocol {self.protocol} needs the option model")
        wanted, word = (int, "an index") if vllm else (str, "a label")
        if self.output is not None and not isinstance(self.output, wanted):
            raise ValueError(f"protocol {self.protocol} takes {word} as output")
        if self.tokenizer is None and (self.chat_template or self.chat_template_kwargs):
            raise ValueError("a chat template is rendered by a tokenizer; set the option tokenizer")
        return self
