"""The plain numbers of a run: pydantic models used by the config and by the Python API alike.

Defaults name their source. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class Settings(BaseModel):
    """Frozen, and a misspelt key is an error instead of a default that nobody asked for."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class LoraSettings(Settings):
    """LoRA adapters (arXiv 2106.09685) by PEFT. Dropout is left out on purpose: it would make
    the ratio of a policy to itself differ from 1."""

    r: int = Field(16, ge=1, description="Rank of the adapters.")
    alpha: float = Field(32.0, gt=0, description="Scale; the update is multiplied by alpha / r.")
    target_modules: str | tuple[str, ...] = Field(
        "all-linear", description="Module names to adapt, or PEFT's 'all-linear'."
    )
    rslora: bool = Field(False, description="Scale by alpha / sqrt(r) (arXiv 2312.03732).")


class QuantizationSettings(Settings):
    """Base weights in 4 bits, for LoRA alone (QLoRA, arXiv 2305.14314), by bitsandbytes."""

    type: Literal["nf4", "fp4"] = Field(
        "nf4", description="Of the 4-bit numbers; nf4 is the paper's."
    )
    double: bool = Field(
        True, description="Quantise the scales, too: 0.37 bits less per weight (paper, section 3)."
    )
    compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Layers are computed in it; auto is bfloat16 (the paper's) on GPUs that have "
        "it, else float32.",
    )
    storage_dtype: Literal["uint8", "bfloat16", "float16", "float32"] = Field(
        "uint8",
        description="How the 4-bit numbers are packed; FSDP needs the dtype of the other weights.",
    )
    adapter_dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="Of the adapters. The paper trains them in bfloat16, which at GRPO's small "
        "rates swallows most updates.",
    )


class ModelSettings(Settings):
    """The policy: where it comes from, and in which numbers it is computed."""

    path: str = Field(description="A folder, or a Hugging Face Hub id.")
    revision: str | None = Field(None, description="Branch, tag or commit on the Hub.")
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = Field(
        "auto", description="Of the weights; auto is float32, so that small updates are not lost."
    )
    mixed_precision: Literal["auto", "no", "bf16"] = Field(
        "auto", description="Autocast; auto is bf16 on GPUs that have it, else no."
    )
    attn_implementation: str | None = Field(
        None, description="As in transformers: sdpa, eager, flash_attention_2 ..."
    )
    trust_remote_code: bool = Field(False, description="Run Python code from the model's folder.")
    gradient_checkpointing: bool = Field(False, description="Less memory for about 1/3 more time.")
    init_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="Further arguments for from_pretrained."
    )
    chat_template: str | None = Field(None, description="A Jinja file in place of the tokenizer's.")
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="Passed to the template, e.g. {enable_thinking: false}."
    )
    layout: Literal["auto", "prefix-tree", "packed", "padded"] = Field(
        "auto",
        description="How rollouts are laid out for the model; auto is prefix-tree where it gives "
        "the same log-probs as padded, which is tried at the start.",
    )
    threads: int | None = Field(
        None,
        ge=1,
        description="CPU threads; null is OMP_NUM_THREADS where set, else one or all, whichever "
        "is faster in a short trial at the start.",
    )
    lora: LoraSettings | None = Field(None, description="Train adapters in place of all weights.")
    quantization: QuantizationSettings | None = Field(
        None, description="Keep the base weights in 4 bits; needs lora."
    )

    @model_validator(mode="after")
    def _trains_something(self) -> ModelSettings:
        if self.quantization is not None and self.lora is None:
            raise ValueError(
                "quantization without lora leaves nothing to train: 4-bit weights have no "
                "gradient. Set model.lora ({} takes its defaults), or leave quantization out"
            )
        return self

    @field_validator("path", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        return str(value) if isinstance(value, Path) else value


class OptimizerSettings(Settings):
    """AdamW (arXiv 1711.05101) with warm-up, a schedule and gradient clipping."""

    learning_rate: float = Field(1e-6, gt=0, description="Peak rate (TRL's default).")
    betas: tuple[float, float] = Field((0.9, 0.999), description="AdamW's moment decay rates.")
    eps: float = Field(1e-8, gt=0, description="AdamW's denominator term.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled; not applied to 1-d weights.")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="Of the rate after warm-up; linear and cosine end at 0."
    )
    warmup_steps: int = Field(0, ge=0, description="Optimizer steps of linear warm-up.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients above this norm are scaled.")


class SamplingParams(Settings):
    """How completions are drawn. Log-probs are of softmax(logits / temperature) everywhere;
    truncation and penalty only change what is drawn."""

    temperature: float = Field(1.0, ge=0, description="0 takes the most likely token.")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus (arXiv 1904.09751); 1 is off.")
    top_k: int = Field(0, ge=0, description="Keep the k most likely tokens; 0 is off.")
    min_p: float = Field(
        0.0, ge=0, le=1, description="Keep tokens above this share of the most likely; 0 is off."
    )
    repetition_penalty: float = Field(1.0, gt=0, description="CTRL (arXiv 1909.05858); 1 is off.")
    max_tokens: int = Field(256, ge=1, description="Completion tokens, the end token included.")
    stop: tuple[str, ...] = Field((), description="Strings that end a completion.")

    @property
    def truncates(self) -> bool:
        """Whether tokens may be cut off from softmax(logits / T)."""
        return (self.top_p, self.top_k, self.min_p) != (1.0, 0, 0.0)

    @property
    def draws_from_policy(self) -> bool:
        """Whether tokens are drawn from softmax(logits / T) itself."""
        return not self.truncates and self.repetition_penalty == 1.0


class DynamicSamplingSettings(Settings):
    """Groups whose completions all have one reward give way to others (DAPO, arXiv 2503.14476).

    What still has no signal at the bound stays in the step, as it would without this.
    """

    max_rounds: int = Field(
        10,
        ge=1,
        description="Most rounds of sampling in a step, the first included (10 as in verl's recipe "
        "for DAPO). Later rounds sample other prompts for the groups without signal only.",
    )
    replay_groups: int = Field(
        0,
        ge=0,
        description="What is still without signal after the last round is filled with groups of "
        "earlier steps: drawn by the variance of their rewards from the last so many of each "
        "process that had signal, each replayed once. 0 is off (TRL's buffer held 64).",
    )

    @model_validator(mode="after")
    def _does_something(self) -> DynamicSamplingSettings:
        if self.max_rounds == 1 and not self.replay_groups:
            raise ValueError(
                "max_rounds 1 with replay_groups 0 replaces nothing; raise one of them, or leave "
                "dynamic_sampling out"
            )
        return self


class TrainSettings(Settings):
    """How much, of what size. Everything else is derived, and printed at the start."""

    steps: int = Field(description="Rollout batches.", ge=1)
    prompts_per_step: int = Field(8, ge=1, description="Prompts sampled per step, over all ranks.")
    group_size: int = Field(8, ge=1, description="Completions per prompt (TRL: num_generations).")
    minibatches_per_step: int = Field(
        1, ge=1, description="Optimizer steps per pass over a rollout batch."
    )
    passes_per_step: int = Field(
        1, ge=1, description="Passes over a rollout batch (TRL: num_iterations)."
    )
    tokens_per_microbatch: int = Field(
        16384, ge=1, description="Most tokens, padding included, in one forward pass."
    )
    dynamic_sampling: DynamicSamplingSettings | None = Field(
        None, description="Replace groups without signal; null takes them as they come."
    )
    schedule: Literal["synchronous", "ahead"] = Field(
        "synchronous",
        description="synchronous samples a step's rollouts, then updates on them. ahead samples "
        "those of the next step during the update, on servers or another device; they come from "
        "weights of the step before, which the loss's ratio corrects.",
    )
    ahead_steps: int = Field(
        1,
        ge=1,
        description="So many steps are being sampled ahead, which is also the most that a token's "
        "weights may be behind. Above 1 only with ahead_in_flight.",
    )
    ahead_in_flight: bool = Field(
        False,
        description="New weights reach the generator while it samples, and completions go on with "
        "them. Nothing waits for the longest completion; what is sampled then depends on the "
        "machine's speed, and a resumed run is not the same bit for bit.",
    )
    seed: int = Field(0, ge=0, description="Of everything random in the run.")
    max_sampler_mismatch: float | None = Field(
        0.05,
        gt=0,
        description="Stop when the KL from sampler to trainer passes this (nats per token); null "
        "never stops. Measured: 1e-9 in one process in float32.",
    )

    @model_validator(mode="after")
    def _divides(self) -> TrainSettings:
        if self.prompts_per_step % self.minibatches_per_step:
            raise ValueError(
                f"prompts_per_step ({self.prompts_per_step}) must be a multiple of "
                f"minibatches_per_step ({self.minibatches_per_step}): groups stay whole"
            )
        return self

    @model_validator(mode="after")
    def _ahead_means_something(self) -> TrainSettings:
        if self.schedule != "ahead" and (self.ahead_steps > 1 or self.ahead_in_flight):
            raise ValueError(
                "ahead_steps and ahead_in_flight have no effect without schedule: ahead; set that "
                "as well, or leave them out"
            )
        if self.ahead_steps > 1 and not self.ahead_in_flight:
            raise ValueError(
                f"ahead_steps is {self.ahead_steps}: weights only change when sampling rests, so "
                "that more than 1 step would be further behind and no faster; set ahead_in_flight "
                "to true, or ahead_steps to 1"
            )
        return self


class EvaluationSampling(Settings):
    """How the completions of an evaluation are drawn; what is null is as in training."""

    samples: int = Field(1, ge=1, description="Completions per prompt, for pass@k and majority@k.")
    temperature: float | None = Field(None, ge=0, description="0 takes the most likely token.")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0)
    max_tokens: int | None = Field(None, ge=1)
    stop: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _samples_differ(self) -> EvaluationSampling:
        if self.temperature == 0 and self.samples > 1:
            raise ValueError(
                f"at temperature 0 all {self.samples} samples of a prompt would be the same; use "
                "samples: 1, or a temperature above 0"
            )
        return self

    def over(self, training: SamplingParams) -> SamplingParams:
        """The run's own settings with these in place of theirs."""
        own = self.model_dump(exclude={"samples"}, exclude_none=True)
        return training.model_copy(update=own)


class EvaluationSettings(Settings):
    """Held-out prompts, sampled in one or several ways, scored by the run's rewards."""

    every: int = Field(0, ge=0, description="Steps between evaluations; 0 is only start and end.")
    prompts: int = Field(256, ge=1, description="At most so many of each held-out data set.")
    sampling: Mapping[str, EvaluationSampling] = Field(
        default={
            "sampled": EvaluationSampling(),
            "greedy": EvaluationSampling(temperature=0.0),
        },
        min_length=1,
        description="Name in metrics to how completions are drawn. As in training and greedily, "
        "unless given.",
    )
    pass_at: float = Field(
        1.0, description="A completion passes with at least this reward, for pass@k and majority@k."
    )
    after_saving: bool = Field(
        False, description="Once more at the end, with the model as read back from its folder."
    )

    @field_validator("sampling")
    @classmethod
    def _names(cls, value: Mapping[str, EvaluationSampling]) -> Mapping[str, EvaluationSampling]:
        for name in value:
            if not name or "/" in name:
                raise ValueError(f"{name!r} cannot be part of a metric's name; leave out '/'")
        return value


class KeepBest(Settings):
    """Which checkpoint is the best one."""

    metric: str = Field(
        min_length=1,
        description="Of the step or of an evaluation after it: reward/mean, eval/greedy/NAME.",
    )
    mode: Literal["max", "min"] = Field("max", description="Whether more or less is better.")


OnError = Literal["stop", "drop", "drop-group"]
"""What becomes of a run whose reward failed."""


class RewardExecution(Settings):
    """How a reward is called, and what is done when it hangs, fails or dies."""

    timeout: float | None = Field(
        300.0,
        gt=0,
        description="Seconds for one call; null waits for ever. 300 is half of the 10 minutes "
        "after which NCCL's collectives give up, so that the run ends with the reward's name.",
    )
    retries: int = Field(
        0,
        ge=0,
        le=100,
        description="Further attempts after an error or a timeout, with pauses of 0.5 s, doubled "
        "up to 8 s (as in openai-python). What is no reward (NaN, a wrong count) is final.",
    )
    concurrency: int | None = Field(
        None,
        ge=1,
        description="Most calls at a time, and the number of worker processes; null is 1 for what "
        "blocks, and no bound for what is async.",
    )
    overlap: bool | None = Field(
        None,
        description="Group by group while others are still sampled; false: all of a step in one "
        "call. null: true for providers with score(), false for functions in TRL's convention and "
        "for what has state.",
    )
    isolation: Literal["none", "process"] = Field(
        "none",
        description="process: in worker processes, which can be killed whatever they are doing. "
        "What blocks otherwise runs in a thread, which cannot.",
    )
    memory_mb: int | None = Field(
        None, ge=64, description="Most MiB of address space of a worker process; null is no limit."
    )
    max_failure_rate: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="With on_error drop or drop-group, stop when more than this share of the last "
        "failure_window calls failed (these two are Resilience4j's defaults).",
    )
    failure_window: int = Field(100, ge=1, description="Calls; until so many the rate is not read.")

    @model_validator(mode="after")
    def _can_be_done(self) -> RewardExecution:
        if self.memory_mb is not None and self.isolation != "process":
            raise ValueError(
                "memory_mb bounds a process of its own: set isolation to process, or leave it out"
            )
        return self


class CheckpointSettings(Settings):
    """When the state of a run is written down, so that it can go on from there bit for bit.

    One is also written at the end, after SIGTERM or SIGINT, and after an error between two
    updates. Each holds the trained weights, twice as much for AdamW, and the reference's.
    """

    every_steps: int = Field(0, ge=0, description="Steps between two; 0 goes by minutes alone.")
    every_epochs: float = Field(
        0.0,
        ge=0,
        description="Written after the step with which so many more passes over the training "
        "prompts are complete; 0 is never.",
    )
    every_minutes: float = Field(
        30.0, ge=0, description="Written after the step in which this time is over; 0 is never."
    )
    keep_last: int = Field(2, ge=1, description="So many of the newest are kept.")
    keep_best: KeepBest | None = Field(
        None, description="Keep the best one too, however old it is."
    )
