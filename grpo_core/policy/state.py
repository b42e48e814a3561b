"""What training changes: the trained weights and the optimizer's moments, by parameter name.

Weights that are not trained, and buffers, are those of ``model.path``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from grpo_core.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn

Moments = Mapping[str, Mapping[str, "Tensor"]]
"""Parameter name to AdamW's ``step``, ``exp_avg`` and ``exp_avg_sq``."""


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """Everything with a gradient: the model, or its adapters alone; not copied."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def load_weights(model: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Put saved weights in place, inside the tensors that optimizer and kernels know.

    Raises:
        ConfigError: they are those of another model.
    """
    live = trained_weights(model)
    found = {name: (tuple(t.shape), t.dtype) for name, t in saved.items()}
    expected = {name: (tuple(t.shape), t.dtype) for name, t in live.items()}
    if found != expected:
        odd = sorted({name for name, _ in found.items() ^ expected.items()})
        raise ConfigError(
            f"the checkpoint does not fit the policy: {len(odd)} parameters differ in name, shape "
            f"or dtype, {odd[0]!r} for one; resume with the model.path, model.dtype and model.lora "
            "that it was written with"
        )
    for name, tensor in saved.items():
        live[name].copy_(tensor)


def optimizer_state(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, dict[str, Tensor]]:
    """The moments of the parameters that have been stepped; not copied."""
    return {
        name: dict(optimizer.state[p])
        for name, p in model.named_parameters()
        if p.requires_grad and p in optimizer.state
    }


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, saved: Moments) -> None:
    """Take over saved moments; rates, betas and decay stay those of the settings."""
    names = {id(p): name for name, p in model.named_parameters()}
    ordered = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
    state = {i: dict(saved[name]) for i, name in enumerate(ordered) if name in saved}
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
