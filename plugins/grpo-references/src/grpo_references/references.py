"""References: nothing, the model under the adapter, and kept weights that stay or follow."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from grpo_core.errors import ConfigError
from grpo_references.config import EmaConfig, PeriodicConfig
from grpo_references.weights import Weights

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from grpo_core.protocols import BuildContext, PolicyHandle
    from grpo_core.types import Rollout

VERSION_KEY = "equals_policy_version"


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


class AdapterOffReference:
    """The policy with its LoRA adapter switched off: the base model, and nothing is copied.

    It is where the run started if the adapter started as no change, as a new one does.
    """

    equals_policy_version: int | None = None
    """The policy's version that has these weights; ``None`` when no version has."""

    def __init__(self, config: None = None, context: BuildContext | None = None) -> None:
        self._policy: PolicyHandle | None = None

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
        self._policy = policy
        self.equals_policy_version = policy.version if _changes_nothing(policy.model) else None

    def logprobs(self, rollouts: Sequence[Rollout]) -> list[Tensor] | None:
        """Under the base model; one tensor of shape ``(action_count,)`` per rollout, in nats."""
        policy = _started(self._policy)
        with policy.adapter_disabled():
            return policy.logprobs(rollouts)

    def step_end(self, step: int) -> None:
        """Nothing moves."""


class FrozenReference:
    """The policy as it was at the start, never trained.

    Costs the memory of the trained weights once more, without gradients or optimizer state. Of a
    LoRA policy that is the adapter alone: the reference is then the adapter as it was, which for
    a new one is the base model, and ``adapter-off`` gives that without any copy.
    """

    equals_policy_version: int | None = None
    """The policy's version that has these weights; ``None`` when no version has."""

    def __init__(self, config: None = None, context: BuildContext | None = None) -> None:
        self._policy: PolicyHandle | None = None

    def start(self, policy: PolicyHandle) -> None:
        """Copy the weights.

        Raises:
            ConfigError: they cannot be copied in this process.
        """
        self._policy = policy
        self._weights = Weights(policy.model)
        self.equals_policy_version = policy.version

    def logprobs(self, rollouts: Sequence[Rollout]) -> list[Tensor] | None:
        """Under the kept weights; one tensor of shape ``(action_count,)`` per rollout, in nats."""
        policy = _started(self._policy)
        if not rollouts:
            return []
        with self._weights.in_place():
            return policy.logprobs(rollouts)

    def step_end(self, step: int) -> None:
        """Nothing moves."""

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs, by name."""
        _started(self._policy)
        version = -1 if self.equals_policy_version is None else self.equals_policy_version
        return {**self._weights.state_dict(), VERSION_KEY: torch.tensor(version)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from ``state_dict``; to be called after ``start``.

        Raises:
            ConfigError: it was saved with another model.
        """
        _started(self._policy)
        weights = {name: tensor for name, tensor in state.items() if name != VERSION_KEY}
        self._weights.load_state_dict(weights)
        version = int(state[VERSION_KEY])
        self.equals_policy_version = None if version < 0 else version


class PeriodicReference(FrozenReference):
    """Becomes the policy every so many steps (TR-DPO's hard update, arXiv 2404.09656).

    Memory is that of ``frozen``.
    """

    def __init__(
        self, config: PeriodicConfig | None = None, context: BuildContext | None = None
    ) -> None:
        super().__init__()
        self._config = config or PeriodicConfig()

    def step_end(self, step: int) -> None:
        """Take over the policy's weights when it is time."""
        if (step + 1) % self._config.every == 0:
            self._weights.mix(1.0)
            self.equals_policy_version = _started(self._policy).version


class EmaReference(FrozenReference):
    """Follows the policy: ``(1 - alpha) * reference + alpha * policy`` every so many steps
    (TR-DPO's soft update, arXiv 2404.09656).

    Memory is that of ``frozen``. Of a LoRA policy the factors A and B are mixed, not their
    product: that differs by ``alpha (1 - alpha) (B' - B)(A' - A)``, which is of second order in
    how far the adapter has moved, and needs no copy of the base model.
    """

    def __init__(
        self, config: EmaConfig | None = None, context: BuildContext | None = None
    ) -> None:
        super().__init__()
        self._config = config or EmaConfig()

    def step_end(self, step: int) -> None:
        """Move towards the policy when it is time."""
        if (step + 1) % self._config.every == 0:
            self._weights.mix(self._config.alpha)
            self.equals_policy_version = None


def _started(policy: PolicyHandle | None) -> PolicyHandle:
    if policy is None:
        raise RuntimeError("the reference was used before start()")
    return policy


def _changes_nothing(model: nn.Module) -> bool:
    """Whether a LoRA adapter is still 0: of its two factors PEFT starts one at 0."""
    zeros = [
        not parameter.any()
        for name, parameter in model.named_parameters()
        if ".lora_B." in name or ".lora_embedding_A." in name
    ]
    return bool(zeros) and all(zeros)
