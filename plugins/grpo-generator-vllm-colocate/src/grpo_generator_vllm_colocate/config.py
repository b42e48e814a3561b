"""Options of the generator `vllm-colocate`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ByteSize, Field, field_validator

from grpo_core.settings import Settings

TAKEN = {
    "model": "generator.model",
    "revision": "the policy's own",
    "dtype": "generator.dtype",
    "max_model_len": "generator.max_model_len",
    "max_num_seqs": "generator.max_num_seqs",
    "enforce_eager": "generator.enforce_eager",
    "gpu_memory_utilization": "generator.gpu_memory_utilization",
    "kv_cache_memory_bytes": "generator.kv_cache_memory",
    "enable_sleep_mode": "generator.sleep",
    "enable_lora": "generator.sync",
    "max_lora_rank": "generator.lora_rank",
    "max_loras": "generator.sync",
    "max_cpu_loras": "generator.sync",
    "seed": "the seed of each request",
    "logprobs_mode": "processed_logprobs, which the trainer is compared with",
    "generation_config": "vllm: the run's own sampling settings and no others",
    "worker_extension_cls": "what checks and marks weights",
    "distributed_executor_backend": "torchrun's ranks",
    "tensor_parallel_size": "generator.tensor_parallel_size",
    "pipeline_parallel_size": "1, as ranks share an engine by tensor_parallel_size alone",
    "prefill_context_parallel_size": "1, as ranks share an engine by tensor_parallel_size alone",
    "data_parallel_size": "1, as engines know nothing of each other",
    "disable_log_stats": "nothing, as there is no server to show them",
}
"""Arguments of the engine that ``engine`` must not give, and what decides them."""


class VLLMColocateConfig(Settings):
    """The engine of each rank, or of several together, and how weights reach it."""

    model: str | None = Field(
        None, description="Folder or Hub id; null is where the policy was loaded from."
    )
    gpu_memory_utilization: float = Field(
        0.3,
        gt=0,
        le=1,
        description="Share of the GPU's memory for the engine's weights, keys and values, beside "
        "the trainer's own; 0.3 is TRL's default too. On a CPU, of the machine's memory.",
    )
    kv_cache_memory: ByteSize | None = Field(
        None,
        gt=0,
        description="Of keys and values, such as 4GiB, in place of what the share leaves for them.",
    )
    max_model_len: int | None = Field(
        None, ge=1, description="Most tokens of prompt and answer; null is the model's."
    )
    max_num_seqs: int | None = Field(
        None, ge=1, description="Most completions decoded together; null is vLLM's own default."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto is float32 where the policy is on a CPU, else what vLLM takes."
    )
    enforce_eager: bool = Field(
        False, description="No compilation and CUDA graphs: starts sooner, samples more slowly."
    )
    tensor_parallel_size: int = Field(
        1,
        ge=1,
        description="So many neighbouring ranks hold one engine together and sample together; "
        "must divide the number of processes. 1: each rank has an engine.",
    )
    peer_timeout: float = Field(
        1800,
        gt=0,
        description="Seconds that a rank waits for others to sync, and for those of the same "
        "engine to sample; as long as torch's default for process groups.",
    )
    sleep: bool | Literal["auto"] = Field(
        "auto",
        description="While the policy is trained, the engine's weights wait in the memory of the "
        "CPU, and its keys and values are given up (sleep level 1); auto is where the platform "
        "can. On a CPU it is accepted, and has no effect.",
    )
    sync: Literal["auto", "full", "adapter"] = Field(
        "auto",
        description="What is handed over: full is all weights, LoRA merged; adapter only those of "
        "LoRA; auto is adapter where the policy has LoRA that vLLM can compute.",
    )
    lora_rank: int | None = Field(
        None, ge=1, description="Largest rank of adapters; null is the policy's, if it has any."
    )
    structured_outputs: dict[str, Any] | None = Field(
        None,
        description="As in vLLM, such as {regex: '[0-9]+'}. Log-probs are then those of what the "
        "grammar left, so train.max_sampler_mismatch must be null.",
    )
    engine: dict[str, Any] = Field(
        default_factory=dict, description="Further arguments of `vllm.LLM`."
    )
    versions: str = Field(
        ">=0.32,<0.33",
        description="Versions of vLLM that are accepted; the default are those tested.",
    )

    @field_validator("engine")
    @classmethod
    def _no_argument_twice(cls, engine: dict[str, Any]) -> dict[str, Any]:
        for name in engine:
            if name in TAKEN:
                raise ValueError(f"engine must not give {name}: that is {TAKEN[name]}")
        return engine
