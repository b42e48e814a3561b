"""The arithmetic on one tile of logits; on a GPU compiled, so that each tile is read once.

Shapes: T tokens of a tile, W words of the vocabulary of a tile.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from grpo_core.policy.head.transform import HeadTransform

logger = logging.getLogger(__name__)

_FLOOR = -1e4
"""Stands for ``-inf``: its exponential is 0 in float64 too, and 0 times it is 0 and not NaN."""


def absorb(
    logits_TW: Tensor,
    scratch_TW: Tensor,
    target_T: Tensor,
    top_T: Tensor,
    mass_T: Tensor,
    moment_T: Tensor,
    target_logit_T: Tensor,
    transform: HeadTransform,
) -> tuple[Tensor, Tensor]:
    """Add a tile to the running sums of a softmax (online softmax, arXiv 1805.02867), in place.

    Args:
        logits_TW: straight from the matrix product; used up.
        scratch_TW: room for the exponentials.
        target_T: the targets, counted from the tile's first word; many lie outside the tile.
        top_T: greatest transformed logit ``x`` so far; the lowest finite number at the start.
        mass_T: sum of ``exp(x - top)``.
        moment_T: sum of ``exp(x - top) * (x - top)``, from which the entropy comes.
        target_logit_T: ``x`` of the target, once its tile has passed.

    Returns:
        ``exp(x - top)`` of this tile, and the factor by which earlier ones have shrunk.
    """
    x = transform.apply_(logits_TW)
    index_T1, inside_T = _inside(target_T, x)
    target_logit_T.copy_(torch.where(inside_T, x.gather(1, index_T1).squeeze(1), target_logit_T))
    new_top_T = torch.maximum(top_T, x.amax(-1))
    moved_T = (top_T - new_top_T).clamp_(min=_FLOOR)
    shrink_T = moved_T.exp()
    x.sub_(new_top_T[:, None]).clamp_(min=_FLOOR)
    e = torch.exp(x, out=scratch_TW)
    moment_T.add_(mass_T * moved_T).mul_(shrink_T).add_(torch.linalg.vecdot(e, x))
    mass_T.mul_(shrink_T).add_(e.sum(-1))
    top_T.copy_(new_top_T)
    return e, shrink_T


def descend(
    logits_TW: Tensor,
    scratch_TW: Tensor,
    target_T: Tensor,
    logsumexp_T: Tensor,
    at_target_T: Tensor,
    factor_T: Tensor | None,
    offset_T: Tensor | None,
    transform: HeadTransform,
) -> Tensor:
    """The descent direction of one tile, made in ``scratch_TW``: minus the gradient with respect
    to the head's matrix product, but for ``transform.slope``.

    ``p * (offset + factor * log p) - at_target * onehot``; ``factor_T`` is None where only the
    log-prob is differentiated, and then it is ``p - at_target * onehot``.
    """
    x = transform.apply_(logits_TW)
    bend = transform.bend(x)
    logp = x.sub_(logsumexp_T[:, None])
    result = torch.exp(logp, out=scratch_TW)
    if factor_T is not None and offset_T is not None:
        logp.clamp_(min=_FLOOR).mul_(factor_T[:, None]).add_(offset_T[:, None])
        result.mul_(logp)
    index_T1, inside_T = _inside(target_T, result)
    result.scatter_add_(1, index_T1, torch.where(inside_T, -at_target_T, 0)[:, None])
    return result if bend is None else result.mul_(bend)


def _inside(target_T: Tensor, tile_TW: Tensor) -> tuple[Tensor, Tensor]:
    """Indices that are safe to use, and whether they mean anything; no transfer from a GPU."""
    last = tile_TW.shape[1] - 1
    return target_T.clamp(0, last)[:, None], (target_T >= 0) & (target_T <= last)


@dataclass(frozen=True, kw_only=True, slots=True)
class TileFunctions:
    """``absorb`` and ``descend``, plain or compiled."""

    absorb: Callable[..., tuple[Tensor, Tensor]] = absorb
    descend: Callable[..., Tensor] = descend


PLAIN = TileFunctions()


@cache
def tile_functions(device: str) -> TileFunctions:
    """The way to compute tiles on a type of device.

    Plain on a CPU: there a tile stays in the cache from one pass to the next (measured: all passes
    together are 1/7 of the matrix products' time), and a compiler may be missing.
    """
    return PLAIN if device == "cpu" else compiled(device)


def compiled(device: str) -> TileFunctions:
    """The tile functions through ``torch.compile``, or plain ones where that fails on a trial."""
    functions = TileFunctions(
        absorb=torch.compile(absorb, dynamic=True), descend=torch.compile(descend, dynamic=True)
    )
    try:
        _try(functions, device)
    except Exception as error:  # whatever a compiler, its driver or its cache can raise
        logger.warning(
            "the head runs uncompiled on %s, which is right but slower: torch.compile failed "
            "with %s: %s",
            device,
            type(error).__name__,
            error,
        )
        return PLAIN
    return functions


def _try(functions: TileFunctions, device: str) -> None:
    sums = torch.zeros(4, 3, device=device)
    target = torch.tensor([0, 5, 9], device=device)
    tiles: Any = lambda: torch.ones(2, 3, 7, device=device).unbind()  # noqa: E731
    functions.absorb(*tiles(), target, *sums, HeadTransform())
    functions.descend(*tiles(), target, sums[0], sums[1], None, None, HeadTransform())
