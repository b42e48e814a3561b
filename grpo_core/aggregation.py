"""Averaging as a weight per token, computed once per optimizer step.

The gradient of an optimizer step is that of ``sum_N(loss_N * weights_N)`` over all its tokens, on
all ranks. Because the weights are known before the first forward pass, the order of rollouts, the
split into microbatches and the number of ranks cannot change it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

import torch

from grpo_core.errors import ConfigError
from grpo_core.types import Aggregation

if TYPE_CHECKING:
    from torch import Tensor


def token_weights(
    aggregation: Aggregation,
    action_count_B: Tensor,
    *,
    total_tokens: int,
    total_rollouts: int,
    max_tokens: int,
) -> Tensor:
    """The weight of every action token of each rollout.

    * ``token-mean``: ``1 / total_tokens``, every token counts alike (DAPO, arXiv 2503.14476;
      BNPO).
    * ``sequence-mean``: ``1 / (total_rollouts * action_count)``, every rollout counts alike
      (GRPO, arXiv 2402.03300).
    * ``sequence-sum``: ``1 / total_rollouts``, a rollout counts by its length (REINFORCE over
      whole rollouts; LUSPO, arXiv 2602.05261).
    * ``constant``: ``1 / (total_rollouts * max_tokens)``, no length in the normaliser
      (Dr. GRPO, arXiv 2503.20783).

    Args:
        action_count_B: int64, action tokens of the rollouts at hand.
        total_tokens: action tokens of the optimizer step over all ranks.
        total_rollouts: rollouts of the optimizer step over all ranks, empty ones included.
        max_tokens: ``sampling.max_tokens``.

    Returns:
        float64 of the shape of ``action_count_B``.

    Raises:
        ConfigError: an aggregation that does not exist.
    """
    ones = torch.ones_like(action_count_B, dtype=torch.float64)
    if aggregation == "token-mean":
        return ones / max(1, total_tokens)
    if aggregation == "sequence-mean":
        # A rollout without action tokens has none to weigh, but still counts as a rollout.
        return ones / (total_rollouts * action_count_B.clamp(min=1))
    if aggregation == "sequence-sum":
        return ones / total_rollouts
    if aggregation == "constant":
        return ones / (total_rollouts * max_tokens)
    raise ConfigError(
        f"there is no aggregation {aggregation!r}; there are {', '.join(get_args(Aggregation))}"
    )
