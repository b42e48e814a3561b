"""How new weights reach the engine of this process: all of them, or LoRA's matrices alone."""

from __future__ import annotations

import logging
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from grpo_core.errors import ConfigError, SyncError
from grpo_core.policy import base_of
from grpo_generator_vllm_colocate.worker import manifest
from grpo_generator_vllm_server.adapters import (
    adapter_rank,
    base_digests,
    obstacle,
    write_adapter,
)
from grpo_generator_vllm_server.weights import require_own, with_head

if TYPE_CHECKING:
    from grpo_core.types import WeightUpdate
    from grpo_generator_vllm_colocate.config import VLLMColocateConfig
    from grpo_generator_vllm_colocate.engine import Engine

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """Weights that the engine has, read back from it.

    Example: ``Held(policy_version=3, mark="a1b2.v3", adapter=None)``.
    """

    policy_version: int
    mark: str
    adapter: Any
    """vLLM's ``LoRARequest``; ``None`` where the weights are whole."""


class Way(Protocol):
    """One way for weights to be handed over."""

    lora_rank: int
    """Largest rank of adapters that the engine must take; 0 is none."""

    def push(self, engine: Engine, update: WeightUpdate, mark: str) -> Held:
        """Have the engine take the weights over, and read back which it has.

        Raises:
            SyncError: it has not taken them; ``engine.broken`` says whether it can go on.
        """

    def close(self) -> None: ...


class Full:
    """All weights, as they are in memory; adapters merged, a tied head by its own name too."""

    lora_rank = 0

    def push(self, engine: Engine, update: WeightUpdate, mark: str) -> Held:
        version = update.policy_version
        # Twice through the tensors: once for their shapes, before anything is applied. Where they
        # are made on the way (merged, gathered from ranks) that is the price.
        listed = manifest(with_head(update))
        _require(engine, listed, version)
        engine.broken = f"the reload to policy version {version} did not end"
        try:
            engine.call("grpo_take", require_own(update), listed, mark)
        except Exception as error:
            engine.broken = f"the reload to policy version {version} failed"
            raise SyncError(
                f"the vLLM engine of this process failed while it took policy version {version}, "
                f"and holds parts of two: {type(error).__name__}: {error}. The next sync makes a "
                "new engine"
            ) from error
        engine.forget_prefixes()
        held = engine.call("grpo_held")
        if held != mark:
            raise SyncError(f"the engine was given {mark} and says that it holds {held}")
        engine.broken = None
        return Held(policy_version=version, mark=mark, adapter=None)

    def close(self) -> None:
        pass


class Adapter:
    """LoRA's matrices alone, under a new name and id each time; the base is never sent."""

    def __init__(self, rank: int) -> None:
        self.lora_rank = rank
        self._folder = Path(tempfile.mkdtemp(prefix="grpo-adapter-"))
        self._compared: Engine | None = None

    def push(self, engine: Engine, update: WeightUpdate, mark: str) -> Held:
        version = update.policy_version
        if self._compared is not engine:
            # Once: that the engine was started with the base that the adapter belongs to.
            _require(engine, manifest(with_head(update)), version)
            _ask(engine, version, "grpo_base", base_digests(update.model))
            self._compared = engine
        folder = self._folder / mark
        write_adapter(folder, update)
        try:
            adapter = engine.add_adapter(mark, folder)
        except Exception as error:
            raise SyncError(
                f"the vLLM engine of this process has not taken the adapter of policy version "
                f"{version}: {type(error).__name__}: {error}. With generator.sync: full it is "
                "merged into the weights in place of that"
            ) from error
        _ask(engine, version, "grpo_adapter", str(folder), mark)
        engine.forget_prefixes()
        held = engine.adapters()
        if held != {mark}:
            raise SyncError(
                f"the engine was given the adapter {mark} and has {sorted(held) or 'none'}"
            )
        for old in self._folder.iterdir():
            if old != folder:
                shutil.rmtree(old, ignore_errors=True)
        return Held(policy_version=version, mark=mark, adapter=adapter)

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


def _ask(engine: Engine, version: int, method: str, *arguments: Any) -> None:
    try:
        engine.call(method, *arguments)
    except ValueError as error:
        raise SyncError(
            f"the vLLM engine of this process does not hold policy version {version}: {error}"
        ) from error


def _require(engine: Engine, listed: Any, version: int) -> None:
    try:
        if not engine.call("grpo_require", listed):
            logger.warning(
                "the vLLM engine of this process was started from a checkpoint without "
                "safetensors: names and shapes cannot be compared before weights are applied"
            )
    except ValueError as error:
        raise SyncError(
            f"policy version {version} does not fit the vLLM engine of this process, and nothing "
            f"was applied: {error}"
        ) from error


def choose(config: VLLMColocateConfig, update: WeightUpdate) -> Way:
    """The way for this policy, said in the log.

    Raises:
        ConfigError: ``adapter`` is asked for, and cannot be.
    """
    rank = adapter_rank(update)
    if rank is None:
        if config.sync == "adapter":
            raise ConfigError("generator.sync is 'adapter', but model.lora is not set")
        logger.info("weights reach vLLM in this process: all of them")
        return Full()
    if config.sync == "full":
        logger.info("weights reach vLLM in this process: all of them, adapters merged")
        return Full()
    in_the_way = _obstacle(update.model, rank, config.lora_rank)
    if in_the_way is None:
        logger.info("weights reach vLLM in this process: LoRA of rank %d, the base stays", rank)
        return Adapter(config.lora_rank or rank)
    if config.sync == "adapter":
        raise ConfigError(f"generator.sync is 'adapter', but {in_the_way}; set it to full")
    logger.warning(
        "weights reach vLLM in this process: all of them, adapters merged, although only adapters "
        "are trained: %s",
        in_the_way,
    )
    return Full()


def _obstacle(model: Any, rank: int, most: int | None) -> str | None:
    """Why the adapter alone would not make the engine's model that of the trainer."""
    if most is not None and rank > most:
        return f"its rank is {rank}, generator.lora_rank {most}"
    base = base_of(model).parameters()
    if any(getattr(p, "quant_state", None) is not None for p in base):
        return "it sits on 4-bit weights, which the engine's checkpoint is not"
    return obstacle(model)
