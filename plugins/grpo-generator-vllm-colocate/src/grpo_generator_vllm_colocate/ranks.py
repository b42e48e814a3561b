"""The processes of a run: which of them share an engine, and that none goes on without the rest."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch.distributed as dist

from grpo_core.errors import ConfigError
from grpo_generator_vllm_colocate.lockstep import Lockstep
from grpo_generator_vllm_colocate.meeting import Meeting, own_store
from grpo_generator_vllm_colocate.surroundings import default_group_exists

if TYPE_CHECKING:
    from grpo_core.types import GenerateRequest
    from grpo_generator_vllm_colocate.batch import Batch
    from grpo_generator_vllm_colocate.config import VLLMColocateConfig
    from grpo_generator_vllm_colocate.engine import Engine
    from grpo_generator_vllm_colocate.ways import Held

_made = itertools.count(1)
"""As many on all ranks, so that they give the same names to what they have in common."""


class Ranks:
    """All ranks of the default process group; made by all of them at the same point.

    Raises:
        ConfigError: there are not as many as ``tensor_parallel_size`` asks for.
    """

    def __init__(self, config: VLLMColocateConfig) -> None:
        several = default_group_exists() and dist.get_world_size() > 1
        self.count = dist.get_world_size() if several else 1
        self.rank = dist.get_rank() if several else 0
        self.shared_by = config.tensor_parallel_size
        """Ranks that hold one engine together."""
        if self.count % self.shared_by:
            raise ConfigError(
                f"generator.tensor_parallel_size is {self.shared_by}: so many neighbouring ranks "
                f"share one engine, but this run has {self.count} process"
                f"{'es' if self.count > 1 else ''}, which it does not divide. Start as many by "
                "torchrun --nproc-per-node, or change it"
            )
        self._timeout = config.peer_timeout
        self._syncs = itertools.count(1)
        self.token = ""
        """The same on all ranks, and of no other run."""
        self._store, self._all = None, None
        if several:
            self._store, self._name = own_store(), f"grpo-vllm-colocate/{next(_made)}"
            if self.rank == 0:
                self._store.set(f"{self._name}/token", secrets.token_hex(8))
            self.token = self._store.get(f"{self._name}/token").decode()
            self._all = self._meeting("all", range(self.count))
        self._lockstep: Lockstep | None = None

    def agree(self, flag: bool = False) -> bool:
        """Whether any rank raised its flag; all come here.

        Raises:
            PeerError: one has failed instead, or does not come.
        """
        return flag if self._all is None else self._all.agree(flag)

    def fail(self, reason: str) -> None:
        """Have the others fail where they would wait for this one."""
        if self._all is not None:
            self._all.fail(reason)

    def lockstep(
        self, engine: Engine, held: Held, batch: Callable[[GenerateRequest], Batch[int]]
    ) -> Lockstep | None:
        """What the ranks of this one's engine do together until the next sync; ``None`` where it
        has an engine to itself. Called after all have agreed that theirs hold the weights."""
        if self.shared_by == 1:
            return None
        if self._lockstep is not None:
            self._lockstep.end()
        # vLLM's own layout of ranks says with whom this one shares.
        members = engine.call("grpo_members")
        meeting = self._meeting(f"{members[0]}.{next(self._syncs)}", members)
        self._lockstep = Lockstep(engine, meeting, held.policy_version, batch)
        return self._lockstep

    def _meeting(self, name: str, ranks: range | list[int]) -> Meeting:
        name = f"{self._name}/{name}"
        return Meeting(self._store, name, ranks=ranks, rank=self.rank, timeout=self._timeout)
