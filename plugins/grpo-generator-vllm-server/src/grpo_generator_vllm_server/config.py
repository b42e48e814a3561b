"""Options of the generator `vllm-server`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from grpo_core.settings import Settings

TOKEN_VARIABLE = "GRPO_VLLM_TOKEN"
"""The bearer token of servers that were started elsewhere."""
PYTHON_VARIABLE = "GRPO_VLLM_PYTHON"
"""The Python of the environment that vllm is installed in."""


class LaunchSettings(Settings):
    """How servers are started on this machine; they end with the process that started them."""

    model: str | None = Field(
        None, description="Folder or Hub id; null is where the policy was loaded from."
    )
    python: str | None = Field(
        None,
        description="Python of the environment with vllm; null is the one that GRPO_VLLM_PYTHON "
        "names, else the trainer's own.",
    )
    replicas: int = Field(1, ge=1, description="How many servers.")
    devices: tuple[str, ...] = Field(
        (),
        description="CUDA_VISIBLE_DEVICES of each server, such as ['1', '2,3']; empty leaves it as "
        "it is, which puts servers and trainer on the same GPUs.",
    )
    host: str = Field("127.0.0.1", description="Where servers listen: a loopback address.")
    port: int | None = Field(
        None, ge=1, le=65535, description="Of the first server, the next follow; null takes any."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto is float32 where the policy is on a CPU, else what vLLM takes."
    )
    max_model_len: int | None = Field(None, ge=1, description="Most tokens of prompt and answer.")
    max_num_seqs: int | None = Field(None, ge=1, description="Most completions decoded together.")
    tensor_parallel_size: int = Field(1, ge=1, description="GPUs that share one copy.")
    gpu_memory_utilization: float | None = Field(
        None, gt=0, le=1, description="Share of the GPU's memory; null is vLLM's own default."
    )
    kv_cache_memory: str | None = Field(
        None, description="Of keys and values, such as 64M, in place of a share of the memory."
    )
    enforce_eager: bool = Field(
        False, description="No compilation and CUDA graphs: starts sooner, samples more slowly."
    )
    lora_rank: int | None = Field(
        None, ge=1, description="Largest rank of adapters; null is the policy's, if it has any."
    )
    start_seconds: float = Field(900, gt=0, description="Longest wait for a server to be ready.")
    restarts: int = Field(
        2, ge=0, description="How often in a run servers that have died are started again."
    )
    args: tuple[str, ...] = Field((), description="Further arguments of `vllm serve`.")
    env: dict[str, str] = Field(
        default_factory=dict, description="Further environment variables of the servers."
    )

    @model_validator(mode="after")
    def _one_entry_per_server(self) -> LaunchSettings:
        if self.devices and len(self.devices) != self.replicas:
            raise ValueError(
                f"devices has {len(self.devices)} entries for {self.replicas} replicas; give one "
                "for each server"
            )
        return self


class VLLMServerConfig(Settings):
    """Where the servers are, how weights reach them, and how long anything may take."""

    urls: tuple[str, ...] = Field(
        (), description="Servers that run already, such as http://127.0.0.1:8000."
    )
    launch: bool | LaunchSettings = Field(
        False, description="Start servers for this run: true, or how."
    )
    token_env: str = Field(
        TOKEN_VARIABLE, description="Environment variable with the bearer token of the servers."
    )
    token_file: str | None = Field(
        None, description="File with the bearer token, in place of the environment variable."
    )
    ca_file: str | None = Field(
        None,
        description="PEM file with the authorities that https addresses are checked against; null "
        "is the public ones.",
    )
    versions: str = Field(
        ">=0.32,<0.33",
        description="Versions of vLLM that are accepted; the default are those tested.",
    )
    sync: Literal["auto", "file", "adapter", "broadcast", "ipc"] = Field(
        "auto",
        description="How weights arrive: file is all of them through a folder, broadcast all of "
        "them over the network, ipc all of them in memory that trainer and servers on one machine "
        "share, adapter only those of LoRA. auto is adapter where policy and "
        "servers have LoRA, broadcast where the servers do not see sync_folder, else file.",
    )
    sync_folder: str | None = Field(
        None,
        description="A folder that the servers see under the same name; null is in the run's. "
        "/dev/shm is fastest on one machine.",
    )
    broadcast_host: str | None = Field(
        None,
        description="Address of this machine that the servers can reach, for sync: broadcast; "
        "null is loopback, which servers on this machine can.",
    )
    broadcast_backend: Literal["auto", "gloo", "nccl"] = Field(
        "auto",
        description="auto is nccl where policy and servers are on GPUs, which must be other ones, "
        "else gloo, which goes through the host's memory.",
    )
    ipc_memory: Literal["auto", "cuda", "host"] = Field(
        "auto",
        description="For sync: ipc: auto is cuda (CUDA IPC, a second copy of the weights on the "
        "policy's GPU) where policy and servers are on NVIDIA GPUs, else host, the host's memory.",
    )
    requests_at_once: int = Field(
        64, ge=1, description="Most prompts that one server has at a time; others wait here."
    )
    connect_seconds: float = Field(10, gt=0, description="Longest wait for a connection.")
    request_seconds: float = Field(
        1200, gt=0, description="Longest wait for the completions of one prompt."
    )
    sync_seconds: float = Field(
        600, gt=0, description="Longest wait for a server to take new weights."
    )
    recover_seconds: float = Field(
        60,
        ge=0,
        description="How long a run without any server waits for one to come back before it stops.",
    )
    attempts: int = Field(
        3, ge=1, description="How often a prompt is tried in all, on whichever servers are left."
    )
    structured_outputs: dict[str, Any] | None = Field(
        None,
        description="As in vLLM, such as {regex: '[0-9]+'}. Log-probs are then those of what the "
        "grammar left, so train.max_sampler_mismatch must be null.",
    )

    @field_validator("urls")
    @classmethod
    def _plain_urls(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            scheme, _, rest = url.partition("://")
            if scheme not in ("http", "https") or not rest:
                raise ValueError(f"{url!r} is no address such as http://127.0.0.1:8000")
            if "@" in rest:
                raise ValueError("an address must not hold a password; use token_env or token_file")
        if len(set(urls)) != len(urls):
            raise ValueError("urls names a server twice")
        return tuple(url.rstrip("/") for url in urls)

    @model_validator(mode="after")
    def _somewhere_to_sample(self) -> VLLMServerConfig:
        if bool(self.urls) == bool(self.launch):
            both = "both" if self.urls else "neither"
            raise ValueError(
                f"{both} of urls and launch are given: name the servers that run already "
                "(urls: [http://127.0.0.1:8000]), or have them started (launch: true)"
            )
        return self

    @property
    def launched(self) -> LaunchSettings | None:
        """How to start servers; ``None`` where they run already."""
        return LaunchSettings() if self.launch is True else self.launch or None
