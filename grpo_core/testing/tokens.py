"""Action tokens for testing losses, cut and put together as the trainer does it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from grpo_core.types import ActionTokens, Need

if TYPE_CHECKING:
    from torch import Tensor

LENGTHS = (5, 0, 1, 9, 3, 7)
"""Of the rollouts of a batch, one of them without action tokens."""
MAX_TOKENS = 9


def random_tokens(
    seed: int = 0,
    *,
    log_ratio: float | None = None,
    spread: float = 0.3,
    dtype: torch.dtype = torch.float64,
) -> ActionTokens:
    """A batch of ``len(LENGTHS)`` rollouts in which every field is filled.

    Args:
        log_ratio: how far every token has moved since the update began, in nats, and since it was
            sampled, and how far it is from the reference; random when ``None``.
        spread: standard deviation of those when they are random.
    """
    rng = torch.Generator().manual_seed(seed)
    count_B = torch.tensor(LENGTHS)
    tokens = int(count_B.sum())

    def noise(size: int = tokens) -> Tensor:
        return torch.randn(size, generator=rng, dtype=torch.float64)

    def moved() -> Tensor:
        return spread * noise() if log_ratio is None else torch.full((tokens,), log_ratio).double()

    now_N, entropy_N = -noise().abs() - 0.1, noise().abs()
    rank_N = entropy_N.argsort().argsort().double() / (tokens - 1)
    whole = ActionTokens(
        logprobs_N=now_N,
        old_logprobs_N=now_N - moved(),
        sampling_logprobs_N=now_N - moved(),
        ref_logprobs_N=now_N - moved(),
        entropy_N=entropy_N,
        advantages_N=noise(len(LENGTHS)).repeat_interleave(count_B),
        rollout_index_N=torch.arange(len(LENGTHS)).repeat_interleave(count_B),
        rollouts=len(LENGTHS),
        entropy_rank_N=rank_N,
        router_balance_N=1 + noise().abs(),
        values_N=noise(),
        old_values_N=noise(),
        value_targets_N=noise(),
    )
    return cast(whole, dtype)


def rows(tokens: ActionTokens, chosen: Sequence[int]) -> tuple[ActionTokens, Tensor]:
    """The microbatch that holds ``chosen`` rollouts in that order, and which tokens those are."""
    where = [(tokens.rollout_index_N == row).nonzero()[:, 0] for row in chosen]
    at_N = torch.cat([*where, torch.zeros(0, dtype=torch.int64)])
    index_N = torch.arange(len(chosen)).repeat_interleave(torch.tensor([len(w) for w in where]))
    cut = replace(tokens, rollout_index_N=index_N, rollouts=len(chosen))
    return replace(cut, **{name: x[at_N] for name, x in _floats(tokens).items()}), at_N


def cast(tokens: ActionTokens, dtype: torch.dtype) -> ActionTokens:
    """The same batch in another precision."""
    return replace(tokens, **{name: x.to(dtype) for name, x in _floats(tokens).items()})


def only(tokens: ActionTokens, needs: frozenset[Need]) -> ActionTokens:
    """What the trainer guarantees to a loss with these needs: the rest is absent, or NaN where a
    field is always there."""
    poison = torch.full_like(tokens.logprobs_N, torch.nan)
    return replace(
        tokens,
        old_logprobs_N=tokens.old_logprobs_N if "old_logprobs" in needs else None,
        ref_logprobs_N=tokens.ref_logprobs_N if "ref_logprobs" in needs else None,
        entropy_rank_N=tokens.entropy_rank_N if "entropy_rank" in needs else None,
        router_balance_N=tokens.router_balance_N if "router_balance" in needs else None,
        values_N=tokens.values_N if "values" in needs else None,
        old_values_N=tokens.old_values_N if "values" in needs else None,
        value_targets_N=tokens.value_targets_N if "values" in needs else None,
        sampling_logprobs_N=tokens.sampling_logprobs_N if "sampling_logprobs" in needs else poison,
        entropy_N=tokens.entropy_N if "entropy" in needs else poison,
    )


def _floats(tokens: ActionTokens) -> dict[str, Any]:
    names = [f"{n}_logprobs_N" for n in ("old", "sampling", "ref")]
    names += ["logprobs_N", "entropy_N", "advantages_N", "entropy_rank_N", "router_balance_N"]
    names += ["values_N", "old_values_N", "value_targets_N"]
    found = {name: getattr(tokens, name) for name in names}
    return {name: x for name, x in found.items() if x is not None}
