"""The same completion lengths on both sides, at the same cost: one column of logits is written.

The end token cannot be drawn before a completion has its length, and is certain then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import LogitsProcessor

if TYPE_CHECKING:
    from torch import Tensor

CERTAIN = 1e4


def force(logits_BV: Tensor, last_B: Tensor, end_ids: Sequence[int]) -> None:
    """Write the end token's column in place: certain where ``last_B``, else impossible."""
    logits_BV[:, list(end_ids)] = -torch.inf
    logits_BV[:, end_ids[0]] = torch.where(last_B, CERTAIN, -torch.inf).to(logits_BV.dtype)


class ForcedLengths(LogitsProcessor):
    """For ``generate``: rows in the order of ``lengths``."""

    def __init__(self, lengths: Sequence[int], end_ids: Sequence[int], device: Any) -> None:
        self._lengths_B = torch.tensor(lengths, device=device)
        self._end_ids = end_ids
        self._drawn = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._drawn += 1
        force(scores, self._lengths_B == self._drawn, self._end_ids)
        return scores


def force_in_generator(lengths_of: Any) -> None:
    """Make grpo-generator-hf draw completions of given lengths.

    Args:
        lengths_of: (step, prompt key, sample) to a length.
    """
    from grpo_generator_hf import generator
    from grpo_generator_hf.draws import Draws

    class ForcedDraws(Draws):
        def draw(self, logits_BV: Tensor) -> Tensor:
            request = self._request
            last = [
                lengths_of(request.step, request.prompt_keys_P[r.row.prompt], r.row.sample)
                == len(r.token_ids) + 1
                for r in self._lines
            ]
            force(logits_BV, torch.tensor(last, device=logits_BV.device), request.eos_token_ids)
            return super().draw(logits_BV)

    generator.Draws = ForcedDraws  # type: ignore[attr-defined]
