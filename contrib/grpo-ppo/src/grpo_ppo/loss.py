"""PPO's objective for the policy and for its value head."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from grpo_core.types import ActionTokens, Aggregation, LossOutput
from grpo_ppo.config import PpoConfig

if TYPE_CHECKING:
    from grpo_core.protocols import BuildContext


class Ppo:
    """``-min(rho A, clip(rho) A) + value_coef * max((v - R)^2, (clip(v) - R)^2) / 2``
    (arXiv 1707.06347, equations 7 and 9; values clipped as in arXiv 2005.12729)."""

    Config = PpoConfig
    needs = PpoConfig.needs
    aggregation: Aggregation = "token-mean"

    def __init__(
        self, config: PpoConfig | None = None, context: BuildContext | None = None
    ) -> None:
        self._config = config or PpoConfig()

    def __call__(self, tokens: ActionTokens) -> LossOutput:
        config = self._config
        assert tokens.old_logprobs_N is not None
        # Differences far beyond any clip would overflow, and infinity times 0 is no gradient.
        ratio_N = (tokens.logprobs_N - tokens.old_logprobs_N).clamp(-20, 20).exp()
        clipped_N = ratio_N.clamp(1 - config.clip, 1 + config.clip)
        policy_N = -torch.minimum(ratio_N * tokens.advantages_N, clipped_N * tokens.advantages_N)
        value_N, beyond_N = self._value_loss(tokens)
        return LossOutput(
            loss_N=policy_N + config.value_coef * value_N,
            metrics={
                "loss/value": value_N.detach(),
                "value/clipped_share": beyond_N,
                "ratio/clipped_share": (clipped_N != ratio_N).to(value_N.dtype).detach(),
            },
        )

    def _value_loss(self, tokens: ActionTokens) -> tuple[torch.Tensor, torch.Tensor]:
        values_N, old_N, targets_N = tokens.values_N, tokens.old_values_N, tokens.value_targets_N
        assert values_N is not None
        assert old_N is not None
        assert targets_N is not None
        error_N = (values_N - targets_N).square()
        most = self._config.value_clip
        if most is None:
            return error_N / 2, torch.zeros_like(error_N).detach()
        near_N = old_N + (values_N - old_N).clamp(-most, most)
        near_error_N = (near_N - targets_N).square()
        beyond_N = (near_error_N > error_N).to(error_N.dtype).detach()
        return torch.maximum(error_N, near_error_N) / 2, beyond_N
