"""The state a model is sampled in, and left in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import nn


@contextmanager
def sampling_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; afterwards every module is in the mode it was in.

    ``no_grad`` and not ``inference_mode``, whose tensors may never meet autograd again: a buffer
    that a model fills while sampling (rotary tables, say) would break the next backward pass.
    """
    # Module by module: `model.train(True)` would wake those that the user keeps in eval mode.
    training = [module for module in model.modules() if module.training]
    model.eval()
    # Autocast keeps low-precision copies of the weights until its outermost context ends. One made
    # before an optimizer step would sample from old weights. One made here would give the next
    # training pass old weights or, before torch 2.10, no gradient (PyTorch issue 158232).
    torch.clear_autocast_cache()
    try:
        with torch.no_grad():
            yield
    finally:
        torch.clear_autocast_cache()
        for module in training:
            module.training = True
