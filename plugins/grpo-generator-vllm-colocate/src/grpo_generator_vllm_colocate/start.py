"""Make the engine of this rank, for the policy that it is to sample from."""

from __future__ import annotations

import importlib
import logging
import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_core.errors import ConfigError
from grpo_core.policy import base_of
from grpo_generator_vllm_colocate.engine import Engine
from grpo_generator_vllm_colocate.library import load_vllm
from grpo_generator_vllm_colocate.surroundings import (
    default_group_exists,
    default_group_kept,
    left_as_found,
    own_shared_memory,
)
from grpo_generator_vllm_colocate.worker import GRPOColocateWorker
from grpo_generator_vllm_server.launch import vllm_rank
from grpo_generator_vllm_server.likeness import config_of, require_alike

if TYPE_CHECKING:
    import torch

    from grpo_core.types import WeightUpdate
    from grpo_generator_vllm_colocate.config import VLLMColocateConfig
    from grpo_generator_vllm_colocate.ranks import Ranks

logger = logging.getLogger(__name__)

LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What vLLM reads from torchrun's environment."""


def start_engine(
    config: VLLMColocateConfig, update: WeightUpdate, lora_rank: int, ranks: Ranks
) -> Engine:
    """Make an engine with the policy's model and precision; all ranks at the same point.

    Raises:
        ConfigError: vllm is missing or of another version, the policy is where no engine can be
            beside it, vLLM cannot be started, or computes otherwise than the policy.
        PeerError: one of these on another rank.
    """
    base: Any = base_of(update.model)
    device = next(base.parameters()).device
    model = config.model or str(base.name_or_path)
    made_group = not default_group_exists()
    with left_as_found():
        vllm = load_vllm(config.versions)
        place = _place(device, ranks)
        platform = importlib.import_module("vllm.platforms").current_platform
        can_sleep = bool(platform.is_sleep_mode_available())
        if config.sleep is True and not can_sleep:
            logger.warning("generator.sleep has no effect: vLLM cannot sleep on this platform")
        sleeps = can_sleep if config.sleep == "auto" else bool(config.sleep)
        arguments = {
            "model": model,
            "revision": None if config.model or Path(model).is_dir() else _revision(base),
            "dtype": _dtype(config, device),
            "gpu_memory_utilization": config.gpu_memory_utilization,
            "kv_cache_memory_bytes": config.kv_cache_memory,
            "max_model_len": config.max_model_len,
            "max_num_seqs": config.max_num_seqs,
            "enforce_eager": config.enforce_eager,
            # See `grpo_generator_vllm_server.launch`: seeds do not survive it on a CPU.
            "enable_chunked_prefill": False if platform.is_cpu() else None,
            "enable_sleep_mode": sleeps and can_sleep,
            # Of the distribution that is sampled from; vLLM's default leaves out the temperature.
            "logprobs_mode": "processed_logprobs",
            # The model's own file may set a temperature or a penalty for whoever names none.
            "generation_config": "vllm",
            "worker_extension_cls": f"{__package__}.worker.{GRPOColocateWorker.__name__}",
            "disable_log_stats": True,
            **place,
            **_lora(lora_rank),
            **config.engine,
        }
        given = {name: value for name, value in arguments.items() if value is not None}
        # vLLM makes process groups of all ranks, and waits for one that cannot begin.
        ranks.agree()
        meets = platform.is_cpu() and ranks.shared_by > 1
        try:
            with own_shared_memory(ranks.token) if meets else nullcontext():
                llm = vllm.LLM(**given)
        except Exception as error:
            _clean_up(made_group=made_group)
            raise ConfigError(
                f"vLLM cannot start an engine with {model} in this process: "
                f"{type(error).__name__}: {error}"
            ) from error
        theirs = llm.model_config.hf_text_config.to_dict()
    made = Engine(llm, sleeps=sleeps, made_group=made_group)
    try:
        require_alike("the vLLM engine of this process", theirs, config_of(update.model))
    except ConfigError:
        made.close()
        raise
    shared = f", shared by {ranks.shared_by} ranks" if ranks.shared_by > 1 else ""
    logger.info("vLLM %s runs in this process, with %s%s", vllm.__version__, model, shared)
    return made


def _dtype(config: VLLMColocateConfig, device: torch.device) -> str:
    # What vLLM takes is the checkpoint's, often bfloat16, which a CPU emulates.
    return "float32" if config.dtype == "auto" and device.type == "cpu" else config.dtype


def _revision(base: Any) -> str | None:
    """The commit that the policy was loaded from: a branch may have moved on since."""
    commit: str | None = getattr(base.config, "_commit_hash", None)
    return commit


def _lora(rank: int) -> dict[str, Any]:
    if not rank:
        return {}
    # Two on the side of the CPU: the new one is there before the old one goes.
    return {
        "enable_lora": True,
        "max_lora_rank": vllm_rank(rank),
        "max_loras": 1,
        "max_cpu_loras": 2,
    }


def _place(device: torch.device, ranks: Ranks) -> dict[str, Any]:
    """Which device is this rank's, and with whom it shares the engine, in vLLM's words.

    Raises:
        ConfigError: vLLM would take another device than the policy's.
    """
    several = ranks.count > 1
    if several:
        missing = [name for name in LAUNCHER if name not in os.environ]
        if missing:
            raise ConfigError(
                f"generator 'vllm-colocate' on {ranks.count} processes needs to be started by "
                f"torchrun or `accelerate launch`: {', '.join(missing)} are not set"
            )
    local = int(os.environ["LOCAL_RANK"]) if several else 0
    if device.type == "cuda" and device.index not in (None, local):
        raise ConfigError(
            f"the policy is on {device}, but vLLM takes cuda:{local} in this process; choose the "
            f"GPU by CUDA_VISIBLE_DEVICES={device.index} in place of model.device"
        )
    # By torchrun's variables each rank finds its own device; by itself vLLM takes the first.
    launcher = {"distributed_executor_backend": "external_launcher"} if several else {}
    return {
        # For draws without one of their own, which engines must not share and their parts must.
        "seed": ranks.rank // ranks.shared_by,
        "tensor_parallel_size": ranks.shared_by,
        **launcher,
    }


def _clean_up(*, made_group: bool) -> None:
    """What a half-made engine leaves behind would stop the next one."""
    state = importlib.import_module("vllm.distributed.parallel_state")
    with nullcontext() if made_group else default_group_kept():
        state.cleanup_dist_env_and_memory()
