"""One vLLM engine in this process: made, asked, put to sleep, ended."""

from __future__ import annotations

import gc
import importlib
import itertools
import logging
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from grpo_core.errors import SyncError
from grpo_generator_vllm_colocate.errors import EngineError, RequestRefusedError
from grpo_generator_vllm_colocate.surroundings import default_group_kept, left_as_found

if TYPE_CHECKING:
    from grpo_generator_vllm_colocate.ways import Held

logger = logging.getLogger(__name__)

SLEEP_LEVEL = 1
"""Weights wait in the CPU's memory, keys and values are given up. Level 2 gives up the weights as
well: a step may sample several times after one sync, and would find none."""


class Engine:
    """An engine and what is known of it.

    Args:
        llm: a ``vllm.LLM``.
        sleeps: whether it is put to sleep between batches of prompts.
        made_group: whether the default process group of this process is its own.
    """

    def __init__(self, llm: Any, *, sleeps: bool, made_group: bool) -> None:
        self._llm = llm
        self._sleeps, self._made_group = sleeps, made_group
        self._asleep: set[str] = set()
        self._numbers = itertools.count(1)
        self._adapters: dict[str, int] = {}
        self._done: dict[str, Any] = {}
        self._running: set[str] = set()
        self.max_model_len = int(llm.model_config.max_model_len)
        self.broken: str | None = None
        """Why it cannot be used any more; the next sync makes another."""

    @property
    def closed(self) -> bool:
        return self._llm is None

    # -- weights ------------------------------------------------------------------------------

    def call(self, method: str, *arguments: Any) -> Any:
        """What a method of its worker returns; exceptions come through."""
        with left_as_found():
            (found,) = self._llm.collective_rpc(method, args=arguments)
        return found

    def add_adapter(self, name: str, folder: Path) -> Any:
        """Load a LoRA adapter in place of those before; vLLM's request for it."""
        from_vllm = importlib.import_module("vllm.lora.request")
        # Never an id twice: with one that it knows, vLLM serves the old adapter without a word.
        number = next(self._numbers)
        adapter = from_vllm.LoRARequest(name, number, str(folder))
        core = self._llm.llm_engine
        with left_as_found():
            if not core.add_lora(adapter) or number not in core.list_loras():
                raise SyncError(f"vLLM does not list the adapter {name} after loading it")
            for old in self._adapters.values():
                core.remove_lora(old)
        self._adapters = {name: number}
        return adapter

    def adapters(self) -> set[str]:
        """Names of the adapters that it has, by its own list."""
        listed = self._llm.llm_engine.list_loras()
        known = {number: name for name, number in self._adapters.items()}
        return {known.get(number, f"id {number}") for number in listed}

    def forget_prefixes(self) -> None:
        """Keys and values of the old weights would be found by the new ones, as vLLM keeps them
        across a reload.

        Raises:
            SyncError: it has not forgotten them.
        """
        if self._llm.reset_prefix_cache() is not True:
            self.broken = "it kept keys and values of other weights"
            raise SyncError("the vLLM engine of this process kept its prefix cache, which is old")

    # -- sampling -----------------------------------------------------------------------------

    def submit(
        self,
        prompt_ids: Collection[int],
        fields: Mapping[str, Any],
        structured_outputs: Mapping[str, Any] | None,
        held: Held,
    ) -> str:
        """Have one group sampled; the name by which ``finished`` hands it out.

        Raises:
            RequestRefusedError: vLLM does not take it.
        """
        params = importlib.import_module("vllm.sampling_params")
        more: dict[str, Any] = {}
        if structured_outputs is not None:
            more["structured_outputs"] = params.StructuredOutputsParams(**structured_outputs)
        name = f"grpo-{next(self._numbers)}"
        try:
            with left_as_found():
                self._llm.llm_engine.add_request(
                    name,
                    {"prompt_token_ids": list(prompt_ids)},
                    params.SamplingParams(
                        **fields,
                        **more,
                        # Text is needed only to look for stop strings in it.
                        detokenize=bool(fields["stop"]),
                        # An object per token costs 3 % of the CPU time of the bundled policy.
                        flat_logprobs=True,
                        output_kind=params.RequestOutputKind.FINAL_ONLY,
                    ),
                    lora_request=held.adapter,
                )
        except Exception as error:
            raise RequestRefusedError(f"vLLM does not take a request: {error}") from error
        self._running.add(name)
        return name

    def finished(self, wanted: Collection[str], *, most: float = inf) -> list[tuple[str, Any]]:
        """Decode until some of these groups are whole; vLLM's outputs, by name.

        Args:
            most: steps after which it returns, even if none is whole.

        Raises:
            EngineError: the engine failed, or has lost them.
        """
        try:
            with left_as_found():
                while not (found := [name for name in wanted if name in self._done]) and most > 0:
                    self._step(len(wanted))
                    most -= 1
        except EngineError:
            raise
        except Exception as error:
            self.broken = f"{type(error).__name__}: {error}"
            raise EngineError(
                f"the vLLM engine of this process failed while it sampled: {self.broken}"
            ) from error
        self._running.difference_update(found)
        return [(name, self._done.pop(name)) for name in found]

    def _step(self, waiting: int) -> None:
        core = self._llm.llm_engine
        if not core.has_unfinished_requests():
            self.broken = f"it lost {waiting} requests"
            raise EngineError(f"the vLLM engine of this process lost {waiting} requests")
        # Several batches may be under way; each takes its own.
        self._done.update({o.request_id: o for o in core.step() if o.finished})

    def release(self, left: Collection[str]) -> None:
        """End of a batch: give up what is left of it, and sleep if nothing else is under way."""
        if self.closed:
            return
        if left and self.broken is None:
            self._llm.llm_engine.abort_request(list(left))
        for name in left:
            self._done.pop(name, None)
        self._running.difference_update(left)
        if self._sleeps and not self._running and self.broken is None:
            with left_as_found():
                self._llm.sleep(level=SLEEP_LEVEL)
            self._asleep = {"weights", "kv_cache"}

    def abandon(self) -> None:
        """Give up whatever is being sampled: its keys and values are of the weights that go."""
        if self._running:
            self._llm.llm_engine.abort_request(list(self._running))
        self._running.clear()
        self._done.clear()

    def wake(self, *, weights_only: bool = False) -> None:
        """Bring back what sleeps; weights alone while they are replaced, as both need room."""
        due = self._asleep & ({"weights"} if weights_only else {"weights", "kv_cache"})
        if due:
            if torch.cuda.is_available():
                # What torch's allocator keeps for later is not free for what wakes up.
                torch.cuda.empty_cache()
            with left_as_found():
                self._llm.wake_up(tags=sorted(due))
            self._asleep -= due

    # -- the end ------------------------------------------------------------------------------

    def close(self) -> None:
        """End it, and its process groups; nothing of it is left, so that another can be made."""
        if self.closed:
            return
        llm, self._llm = self._llm, None
        with left_as_found(), nullcontext() if self._made_group else default_group_kept():
            # By hand: left to the garbage collector, it would end the groups of a later engine.
            llm.llm_engine.renderer.shutdown()
            llm.llm_engine.engine_core.shutdown()
            del llm
            gc.collect()
