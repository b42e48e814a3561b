"""From logits to a token, its log-prob, and the mass that truncation left to draw from.

Two distributions: the policy's, softmax(logits / T), which log-probs are of; and the one that is
drawn from, after repetition penalty, top-k, top-p and min-p. Transforms and their results are those
of transformers' `generate`. Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from grpo_core.settings import SamplingParams

_BLOCK = 256
"""Tokens whose probabilities are summed before the running sum over the vocabulary, which is then
short enough for float64. A float32 running sum over 150 000 tokens loses its rare ones."""


def tempered(logits_BV: Tensor, temperature: float) -> Tensor:
    """Logits of the policy's own distribution, softmax(logits / T); at T = 0 that of T = 1.

    Returns:
        float32, or float64 when the logits are.
    """
    if logits_BV.dtype != torch.float64:
        logits_BV = logits_BV.float()
    return logits_BV if temperature in (0, 1) else logits_BV / temperature


def transform(logits_BV: Tensor, sampling: SamplingParams, seen_BV: Tensor | None) -> Tensor:
    """Logits of the distribution to draw from; what truncation removes is ``-inf``.

    At least the most likely token stays, and equally likely tokens stay or go together, so that
    no result hangs on the order in which a sort leaves ties.

    Args:
        logits_BV: from ``tempered``. The penalty comes after the temperature, not before it as in
            `generate`: both only scale, so that their order does not matter.
        seen_BV: bool, tokens that the prompt or the completion holds already; needed when
            ``sampling.repetition_penalty`` is not 1.

    Returns:
        The very tensor that was given when there is nothing to do. At temperature 0 only the
        penalty is applied: the rest cannot change which token is the most likely one.
    """
    if sampling.repetition_penalty != 1 and seen_BV is not None:
        logits_BV = _penalise(logits_BV, sampling.repetition_penalty, seen_BV)
    if sampling.temperature == 0:
        return logits_BV
    if 0 < sampling.top_k < logits_BV.shape[-1]:
        logits_BV = _keep_from(logits_BV, logits_BV.topk(sampling.top_k).values[:, -1:])
    if sampling.top_p < 1:
        logits_BV = _keep_from(logits_BV, _nucleus_edge(logits_BV, sampling.top_p))
    if sampling.min_p > 0:
        edge_B1 = logits_BV.amax(-1, keepdim=True) + math.log(sampling.min_p)
        logits_BV = _keep_from(logits_BV, edge_B1)
    return logits_BV


def draw(logits_BV: Tensor, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """Invert the cumulative distribution at ``uniform_B`` (float64 in [0, 1)).

    Returns:
        ``(token_B, logmass_B)``: int64, and ``log_mass`` of the logits.
    """
    top_B1 = logits_BV.amax(-1, keepdim=True)
    mass_BV = (logits_BV - top_B1).exp_()
    cumulative_BK = _block_sums(mass_BV).double().cumsum(-1)
    total_B1 = cumulative_BK[:, -1:]
    target_B1 = uniform_B[:, None] * total_B1
    block_B1 = _first_above(cumulative_BK, target_B1)
    start_B1 = torch.where(block_B1 > 0, cumulative_BK.gather(1, (block_B1 - 1).clamp(min=0)), 0.0)
    column_BW = block_B1 * _BLOCK + torch.arange(_BLOCK, device=logits_BV.device)
    last = logits_BV.shape[-1] - 1
    inside_BW = mass_BV.gather(1, column_BW.clamp(max=last)).masked_fill_(column_BW > last, 0)
    offset_B1 = _first_above(inside_BW.cumsum(-1, dtype=torch.float64), target_B1 - start_B1)
    # Only NaN logits get past the end; `Draws` reports them by their log-prob.
    token_B1 = (block_B1 * _BLOCK + offset_B1).clamp(max=last)
    return token_B1.squeeze(1), (total_B1.log() + top_B1).squeeze(1)


def most_likely(logits_BV: Tensor) -> tuple[Tensor, Tensor]:
    """The most likely token, and ``log_mass`` of the logits."""
    return logits_BV.argmax(-1), log_mass(logits_BV)


def log_mass(logits_BV: Tensor) -> Tensor:
    """Log of the sum of exp(logits), float64 of shape ``(B,)``; less it, a logit is a log-prob."""
    top_B1 = logits_BV.amax(-1, keepdim=True)
    total_B = _block_sums((logits_BV - top_B1).exp_()).sum(-1, dtype=torch.float64)
    return total_B.log() + top_B1.squeeze(1)


def _penalise(logits_BV: Tensor, penalty: float, seen_BV: Tensor) -> Tensor:
    """CTRL's repetition penalty (arXiv 1909.05858), for logits of either sign."""
    less_BV = torch.where(logits_BV < 0, logits_BV * penalty, logits_BV / penalty)
    return torch.where(seen_BV, less_BV, logits_BV)


def _keep_from(logits_BV: Tensor, edge_B1: Tensor) -> Tensor:
    return logits_BV.masked_fill(logits_BV < edge_B1, -math.inf)


def _nucleus_edge(logits_BV: Tensor, top_p: float) -> Tensor:
    """The least logit of the nucleus (arXiv 1904.09751): a token is in it while the tokens that
    are more likely hold less than ``top_p`` of the probability."""
    sorted_BV = logits_BV.sort(-1, descending=True).values
    mass_BV = sorted_BV.softmax(-1)
    before_BV = mass_BV.cumsum(-1, dtype=torch.float64) - mass_BV
    inside_B1 = (before_BV < top_p).sum(-1, keepdim=True)
    return sorted_BV.gather(1, (inside_B1 - 1).clamp(min=0))


def _block_sums(mass_BV: Tensor) -> Tensor:
    """Sums over blocks of the vocabulary, the last of which may be short; ``(B, K)``."""
    whole = mass_BV.shape[-1] // _BLOCK * _BLOCK
    sums_BK = mass_BV[:, :whole].unflatten(-1, (-1, _BLOCK)).sum(-1)
    rest_BW = mass_BV[:, whole:]
    return torch.cat([sums_BK, rest_BW.sum(-1, keepdim=True)], -1) if rest_BW.numel() else sums_BK


def _first_above(cumulative_BN: Tensor, target_B1: Tensor) -> Tensor:
    """Index of the first sum above the target: always a place where something was added.

    Rounding can leave the target at or above the last sum; without the clamp such a row would get
    the last index, which may be a token that truncation has removed.
    """
    last_B1 = cumulative_BN[:, -1:]
    below_last_B1 = torch.nextafter(last_B1, torch.zeros_like(last_B1))
    target_B1 = target_B1.clamp(min=0).minimum(below_last_B1)
    index_B1 = torch.searchsorted(cumulative_BN, target_B1, right=True)
    return index_B1.clamp(max=cumulative_BN.shape[-1] - 1)
