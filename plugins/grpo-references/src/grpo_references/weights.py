"""A second set of the trained weights, without a second model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from grpo_core.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn


class Weights:
    """The trained weights as they were at some moment, to be put in the policy's place.

    What is not trained is the same for both and held once: of a LoRA policy only the adapter is
    copied. The values change places inside the policy's own tensors, so that wrappers, optimizer
    and kernels see the same parameters as always.
    """

    def __init__(self, model: nn.Module) -> None:
        """Copy what requires a gradient.

        Raises:
            ConfigError: a parameter is empty in this process, so that its copy would be too.
        """
        self._live = {n: p for n, p in model.named_parameters() if p.requires_grad}
        empty = [name for name, parameter in self._live.items() if not parameter.numel()]
        if empty:
            raise ConfigError(
                f"parameter {empty[0]!r} (and {len(empty) - 1} more) has no elements in this "
                "process, as under DeepSpeed ZeRO-3: a reference made of it would be the policy "
                "itself. Use another kind of sharding, or reference.name 'adapter-off' with LoRA"
            )
        self._kept = {name: p.detach().clone() for name, p in self._live.items()}

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The policy's model has these weights, within the context."""
        exchanged = []
        try:
            for name in self._live:
                self._exchange(name)
                exchanged.append(name)
            torch.clear_autocast_cache()
            yield
        finally:
            # Only what was exchanged: an interrupt half way must not leave a mixture behind.
            for name in exchanged:
                self._exchange(name)
            # Low-precision copies of these weights would otherwise serve for the policy's, in a
            # caller who holds autocast open.
            torch.clear_autocast_cache()

    @torch.no_grad()
    def mix(self, alpha: float) -> None:
        """Become ``(1 - alpha) * these + alpha * the policy's``, parameter by parameter."""
        for name, kept in self._kept.items():
            kept.lerp_(self._live[name], alpha)

    def state_dict(self) -> dict[str, Tensor]:
        """The weights by the policy's parameter names; not copied."""
        return dict(self._kept)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over weights that were saved.

        Raises:
            ConfigError: they are those of another model.
        """
        found = {name: tuple(tensor.shape) for name, tensor in state.items()}
        expected = {name: tuple(tensor.shape) for name, tensor in self._kept.items()}
        if found != expected:
            odd = sorted({name for name, _ in found.items() ^ expected.items()})
            raise ConfigError(
                f"the reference's saved state does not fit the policy: {len(odd)} parameters "
                f"differ in name or shape, {odd[0]!r} for one; resume with the model.path and "
                "model.lora that it was saved with"
            )
        for name, tensor in state.items():
            self._kept[name].copy_(tensor)

    @torch.no_grad()
    def _exchange(self, name: str) -> None:
        live, kept = self._live[name], self._kept[name]
        aside = live.clone()
        live.copy_(kept)
        kept.copy_(aside)
