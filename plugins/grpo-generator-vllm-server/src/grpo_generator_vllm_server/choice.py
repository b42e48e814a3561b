"""Which way weights travel, by what policy and servers can do."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from grpo_core.errors import ConfigError
from grpo_generator_vllm_server.adapters import adapter_rank, obstacle
from grpo_generator_vllm_server.broadcast import ByBroadcast
from grpo_generator_vllm_server.client import Server
from grpo_generator_vllm_server.ipc import ByIPC, require_shared
from grpo_generator_vllm_server.shared import MemoryName
from grpo_generator_vllm_server.sync import ByAdapter, ByFile, Facts, Way

if TYPE_CHECKING:
    import torch

    from grpo_core.types import WeightUpdate
    from grpo_generator_vllm_server.config import VLLMServerConfig

logger = logging.getLogger(__name__)


def choose(
    config: VLLMServerConfig,
    update: WeightUpdate,
    facts: Sequence[Facts],
    servers: Sequence[Server],
    folder: Callable[[], Path],
) -> Way:
    """The way for this policy and these servers, said in the log.

    Args:
        servers: those whose facts these are.
        folder: where weights would lie, if every server sees it.

    Raises:
        ConfigError: what is asked for cannot be done by policy or servers.
    """
    asked, rank = config.sync, adapter_rank(update)
    least = min(f.lora_rank for f in facts)
    dtypes = {f.dtype for f in facts}
    dtype = dtypes.pop() if len(dtypes) == 1 else None
    if asked == "adapter" and rank is None:
        raise ConfigError("generator.sync is 'adapter', but the policy has none; set model.lora")
    if asked == "adapter" and (rank or 0) > least:
        raise ConfigError(
            f"generator.sync is 'adapter' with rank {rank}, but the servers take ranks up to "
            f"{least}; start them with grpo serve --lora-rank {rank}"
        )
    in_the_way = None if rank is None else obstacle(update.model)
    if asked == "adapter" and in_the_way is not None:
        raise ConfigError(
            f"generator.sync is 'adapter', but {in_the_way}; set it to file or broadcast"
        )
    shared = asked in ("file", "adapter") or (asked == "auto" and shares_folder(folder(), servers))
    if shared and asked != "file" and rank is not None:
        if rank > least:
            in_the_way = (
                f"the servers take ranks up to {least}; start them with grpo serve --lora-rank "
                f"{rank}"
            )
        if in_the_way is None:
            logger.info("weights reach vLLM by adapter: LoRA of rank %d, the base stays", rank)
            return ByAdapter()
        logger.warning(
            "weights reach vLLM merged, although an adapter of rank %d is trained: %s",
            *(rank, in_the_way),
        )
    shown = dtype or "their own precision"
    if rank is not None:
        shown += ", LoRA merged"
    if shared:
        logger.info("weights reach vLLM by file: all of them, in %s", shown)
        return ByFile(dtype)
    if asked == "ipc":
        memory = _memory(config, update, facts)
        require_shared(memory, _device(update), servers)
        place = "a GPU's memory (CUDA IPC)" if memory == "cuda" else "the host's memory"
        logger.info("weights reach vLLM by ipc through %s: all of them, in %s", place, shown)
        return ByIPC(dtype, memory=memory)
    backend = _backend(config, update, facts)
    logger.info("weights reach vLLM by broadcast over %s: all of them, in %s", backend, shown)
    return ByBroadcast(dtype, backend=backend, host=config.broadcast_host)


def _backend(config: VLLMServerConfig, update: WeightUpdate, facts: Sequence[Facts]) -> str:
    if config.broadcast_backend != "auto":
        return config.broadcast_backend
    return "nccl" if _on_gpus(update, facts) else "gloo"


def _memory(config: VLLMServerConfig, update: WeightUpdate, facts: Sequence[Facts]) -> MemoryName:
    import torch

    on_gpus = _on_gpus(update, facts) and torch.version.cuda is not None
    if config.ipc_memory == "cuda" and not on_gpus:
        raise ConfigError(
            "generator.ipc_memory is 'cuda', but policy and servers are not all on NVIDIA GPUs: "
            f"the policy is on {_device(update)}, the servers on "
            f"{', '.join(sorted({f.device for f in facts}))}; set it to auto"
        )
    if config.ipc_memory == "auto":
        return "cuda" if on_gpus else "host"
    return config.ipc_memory


def _on_gpus(update: WeightUpdate, facts: Sequence[Facts]) -> bool:
    return {f.device for f in facts} | {_device(update).type} == {"cuda"}


def _device(update: WeightUpdate) -> torch.device:
    return next(update.model.parameters()).device


def shares_folder(folder: Path, servers: Sequence[Server]) -> bool:
    """Whether every worker of every server reads what is written there."""
    folder.mkdir(parents=True, exist_ok=True)
    probe, text = folder / f".{secrets.token_hex(8)}.probe", secrets.token_hex(16)
    try:
        probe.write_text(text, "utf-8")
        return all(
            answer == {"sees": True}
            for server in servers
            for answer in server.rpc("grpo_sees", seconds=30, path=str(probe), text=text)
        )
    finally:
        probe.unlink(missing_ok=True)
