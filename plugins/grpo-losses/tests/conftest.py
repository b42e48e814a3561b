"""Random ragged batches, as flat action tokens and as one small record per rollout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import pytest
import torch
from torch import Tensor

from grpo_core.aggregation import token_weights
from grpo_core.types import ActionTokens, Aggregation

MAX_TOKENS = 9


@dataclass(frozen=True, kw_only=True)
class Record:
    """One rollout as a paper sees it; ``(T,)`` each."""

    now: Tensor
    old: Tensor
    sampled: Tensor
    ref: Tensor
    entropy: Tensor
    entropy_rank: Tensor
    advantage: Tensor


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The same numbers twice: flat, and cut into records."""

    lengths: list[int]
    now_N: Tensor
    old_N: Tensor
    sampled_N: Tensor
    ref_N: Tensor
    entropy_N: Tensor
    entropy_rank_N: Tensor
    advantage_N: Tensor

    def tokens(self, logprobs_N: Tensor | None = None, entropy_N: Tensor | None = None) -> Any:
        count_B = torch.tensor(self.lengths)
        return ActionTokens(
            logprobs_N=self.now_N if logprobs_N is None else logprobs_N,
            old_logprobs_N=self.old_N,
            sampling_logprobs_N=self.sampled_N,
            ref_logprobs_N=self.ref_N,
            entropy_N=self.entropy_N if entropy_N is None else entropy_N,
            advantages_N=self.advantage_N,
            rollout_index_N=torch.arange(len(count_B)).repeat_interleave(count_B),
            rollouts=len(count_B),
            entropy_rank_N=self.entropy_rank_N,
        )

    def records(self, logprobs_N: Tensor, entropy_N: Tensor) -> list[Record]:
        flat = {f.name: getattr(self, f"{f.name}_N") for f in fields(Record)}
        flat |= {"now": logprobs_N, "entropy": entropy_N}
        cut = {name: x.split(self.lengths) for name, x in flat.items()}
        return [Record(**{n: x[i] for n, x in cut.items()}) for i in range(len(self.lengths))]

    def weights(self, aggregation: Aggregation) -> Tensor:
        count_B = torch.tensor(self.lengths)
        weight_B = token_weights(
            aggregation,
            count_B,
            total_tokens=sum(self.lengths),
            total_rollouts=len(count_B),
            max_tokens=MAX_TOKENS,
        )
        return weight_B.repeat_interleave(count_B)


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., Batch]:
    def make(
        seed: int, *, rows: int = 5, spread: float = 0.6, dtype: torch.dtype = torch.float64
    ) -> Batch:
        """``spread`` is how far old and current log-probs are apart, in nats."""
        rng = torch.Generator().manual_seed(seed)
        lengths = torch.randint(0, MAX_TOKENS + 1, (rows,), generator=rng)
        lengths[0] = MAX_TOKENS
        tokens = int(lengths.sum())

        def noise(size: int = tokens) -> Tensor:
            return torch.randn(size, generator=rng, dtype=dtype)

        old = -noise().abs() - 0.1
        entropy = noise().abs()
        return Batch(
            lengths=lengths.tolist(),
            now_N=old + spread * noise(),
            old_N=old,
            sampled_N=old + spread * noise(),
            ref_N=old + spread * noise(),
            entropy_N=entropy,
            entropy_rank_N=entropy.argsort().argsort().to(dtype) / (tokens - 1),
            advantage_N=noise(rows).repeat_interleave(lengths),
        )

    return make
