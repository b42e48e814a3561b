"""References that never move: nothing, a frozen copy, the base model under the adapter."""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING

from grpo_core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from grpo_core.protocols import BuildContext, PolicyHandle
    from grpo_core.types import Rollout

logger = logging.getLogger(__name__)


class NoReference:
    """There is no reference; a loss that needs one is refused before the start."""

    def __init__(self, config: None = None, context: BuildContext | None = None) -> None:
        pass

    def start(self, policy: PolicyHandle) -> None:
        """Nothing to prepare."""

    def logprobs(self, rollouts: Sequence[Rollout]) -> list[Tensor] | None:
        """Always ``None``."""
        return None

    def step_end(self, step: int) -> None:
        """Nothing moves."""


class FixedReference:
    """What the two below have in common: they know the policy, and do not move."""

    def __init__(self, config: None = None, context: BuildContext | None = None) -> None:
        self._started: PolicyHandle | None = None

    @property
    def _policy(self) -> PolicyHandle:
        if self._started is None:
            raise RuntimeError(f"{type(self).__name__}.logprobs() was called before start()")
        return self._started

    def step_end(self, step: int) -> None:
        """Nothing moves."""


class FrozenReference(FixedReference):
    """A copy of the policy as it was at the start, on the same device, never trained.

    Costs the memory of the weights once more, but neither gradients nor optimizer state. With a
    LoRA policy ``adapter-off`` gives the same log-probs without the copy: an adapter starts out
    as no change at all.
    """

    def start(self, policy: PolicyHandle) -> None:
        """Copy the weights."""
        if policy.has_adapter:
            logger.warning(
                "reference 'frozen' copies the whole base model of a LoRA policy; 'adapter-off' "
                "gives the same log-probs without a copy"
            )
        self._started = policy
        # A copy and not a second load: the policy may have been changed since it was loaded.
        self._model: nn.Module = copy.deepcopy(policy.model).eval().requires_grad_(False)

    def logprobs(self, rollouts: Sequence[Rollout]) -> list[Tensor] | None:
        """Under the copy; one tensor of shape ``(action_count,)`` per rollout, in nats."""
        return self._policy.logprobs(rollouts, model=self._model)


class AdapterOffReference(FixedReference):
    """The policy with its LoRA adapter switched off, which is the model that the run started
    from: no second copy is held."""

    def start(self, policy: PolicyHandle) -> None:
        """Remember the policy.

        Raises:
            ConfigError: it has no adapter.
        """
        if not policy.has_adapter:
            raise ConfigError(
                "reference 'adapter-off' is the policy without its LoRA adapter, but model.lora "
                "is not set, so there is nothing to switch off; set model.lora, or set "
                "reference.name to 'frozen'"
            )
        self._started = policy

    def logprobs(self, rollouts: Sequence[Rollout]) -> list[Tensor] | None:
        """Under the base model; one tensor of shape ``(action_count,)`` per rollout, in nats."""
        with self._policy.adapter_disabled():
            return self._policy.logprobs(rollouts)
