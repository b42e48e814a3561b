"""From logits to a token and the log-prob it was drawn with.

Shapes: B rows, V vocabulary. The transforms and their order are those of transformers' `generate`:
repetition penalty, temperature, top-k, top-p, min-p.
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


def transform(logits_BV: Tensor, sampling: SamplingParams, seen_BV: Tensor | None) -> Tensor:
    """Logits of the distribution to draw from; what truncation removes is ``-inf``.

    At least the most likely token stays, and equally likely tokens stay or go together, so that
    no result hangs on the order in which a sort leaves ties.

    Args:
        logits_BV: the model's logits, in any dtype.
        seen_BV: bool, tokens that the prompt or the completion holds already; needed when
            ``sampling.repetition_penalty`` is not 1.

    Returns:
        float32, or float64 when the logits are. At temperature 0 only the penalty is applied:
        the rest cannot change which token is the most likely one.
    """
    if logits_BV.dtype != torch.float64:
        logits_BV = logits_BV.float()
    if sampling.repetition_penalty != 1 and seen_BV is not None:
        logits_BV = _penalise(logits_BV, sampling.repetition_penalty, seen_BV)
    if sampling.temperature == 0:
        return logits_BV
    logits_BV = logits_BV / sampling.temperature
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
        ``(token_B, logprob_B)``: int64, and the log-softmax of the logits at the token.
    """
    logits_BV = _pad_to_blocks(logits_BV)
    top_B1 = logits_BV.amax(-1, keepdim=True)
    mass_BKW = (logits_BV - top_B1).exp().unflatten(-1, (-1, _BLOCK))
    cumulative_BK = mass_BKW.sum(-1, dtype=torch.float64).cumsum(-1)
    total_B1 = cumulative_BK[:, -1:]
    target_B1 = uniform_B[:, None] * total_B1
    block_B1 = _first_above(cumulative_BK, target_B1)
    start_B1 = torch.where(block_B1 > 0, cumulative_BK.gather(1, (block_B1 - 1).clamp(min=0)), 0.0)
    inside_BW = mass_BKW.take_along_dim(block_B1[:, :, None], 1).squeeze(1)
    offset_B1 = _first_above(inside_BW.cumsum(-1, dtype=torch.float64), target_B1 - start_B1)
    token_B1 = block_B1 * _BLOCK + offset_B1
    logprob_B1 = logits_BV.gather(1, token_B1) - top_B1 - total_B1.log()
    return token_B1.squeeze(1), logprob_B1.squeeze(1).to(logits_BV.dtype)


def most_likely(logits_BV: Tensor) -> tuple[Tensor, Tensor]:
    """The most likely token, and its log-softmax."""
    token_B = logits_BV.argmax(-1)
    return token_B, logits_BV.log_softmax(-1).gather(1, token_B[:, None]).squeeze(1)


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


def _pad_to_blocks(logits_BV: Tensor) -> Tensor:
    missing = -logits_BV.shape[-1] % _BLOCK
    return torch.nn.functional.pad(logits_BV, (0, missing), value=-math.inf)


def _first_above(cumulative_BN: Tensor, target_B1: Tensor) -> Tensor:
    """Index of the first sum above the target: always a place where something was added.

    Rounding can leave the target at or above the last sum; without the clamp such a row would get
    the last index, which may be a token that truncation has removed.
    """
    last_B1 = cumulative_BN[:, -1:]
    below_last_B1 = torch.nextafter(last_B1, torch.zeros_like(last_B1))
    target_B1 = target_B1.clamp(min=0).minimum(below_last_B1)
    index_B1 = torch.searchsorted(cumulative_BN, target_B1, right=True)
    # Only NaN logits get here with an index past the end; `Draws` reports them by their log-prob.
    return index_B1.clamp(max=cumulative_BN.shape[-1] - 1)
