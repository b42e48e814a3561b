"""Random ragged batches, as flat action tokens and as the padded tensors of other trainers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from grpo_core.types import ActionTokens

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_TOKENS = 9


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The same numbers twice; ``x_B_T`` is padded with what must never be read."""

    mask_B_T: Tensor
    logprobs_B_T: Tensor
    old_B_T: Tensor
    ref_B_T: Tensor
    entropy_B_T: Tensor
    advantages_B: Tensor

    def tokens(self, logprobs_B_T: Tensor | None = None, *, reference: bool = True) -> ActionTokens:
        mask = self.mask_B_T
        rows, width = mask.shape
        return ActionTokens(
            logprobs_N=(self.logprobs_B_T if logprobs_B_T is None else logprobs_B_T)[mask],
            old_logprobs_N=self.old_B_T[mask],
            sampling_logprobs_N=self.old_B_T[mask],
            ref_logprobs_N=self.ref_B_T[mask] if reference else None,
            entropy_N=self.entropy_B_T[mask],
            advantages_N=self.advantages_B[:, None].expand(rows, width)[mask],
            rollout_index_N=torch.arange(rows)[:, None].expand(rows, width)[mask],
            rollouts=rows,
        )

    def weights(self, aggregation: str) -> Tensor:
        """One weight per action token, written down from the papers."""
        length_B = self.mask_B_T.sum(1)
        rows = len(length_B)
        weight_B = {
            "token-mean": [1 / int(length_B.sum())] * rows,
            "sequence-mean": [1 / (rows * max(1, int(n))) for n in length_B],
            "constant": [1 / (rows * MAX_TOKENS)] * rows,
        }[aggregation]
        return torch.tensor(weight_B, dtype=torch.float64).repeat_interleave(length_B)


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    def make(
        seed: int, *, rows: int = 5, spread: float = 0.6, dtype: torch.dtype = torch.float64
    ) -> Batch:
        """``spread`` is how far old and current log-probs are apart, in nats."""
        rng = torch.Generator().manual_seed(seed)

        def noise(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=rng, dtype=dtype)

        length_B = torch.randint(0, MAX_TOKENS + 1, (rows,), generator=rng)
        length_B[0] = MAX_TOKENS
        mask = torch.arange(MAX_TOKENS)[None] < length_B[:, None]
        old = -noise(rows, MAX_TOKENS).abs()
        return Batch(
            mask_B_T=mask,
            logprobs_B_T=old + spread * noise(rows, MAX_TOKENS),
            old_B_T=old,
            ref_B_T=old + spread * noise(rows, MAX_TOKENS),
            entropy_B_T=noise(rows, MAX_TOKENS).abs(),
            advantages_B=noise(rows),
        )

    return make
