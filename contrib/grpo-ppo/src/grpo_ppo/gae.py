"""Advantages per token from a value head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from grpo_core.types import AdvantageRequest, AdvantageResult
from grpo_ppo.config import GaeConfig

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_core.protocols import BuildContext
    from grpo_core.types import Need


class Gae:
    """Generalised advantage estimation (arXiv 1506.02438, equation 16).

    The weighted reward stands at a rollout's last action token, and each token pays ``kl_coef``
    times its log-ratio to the reference. What comes after the last token is worth nothing, also
    where the rollout was cut off. A rollout that no reward has a value for teaches nothing: its
    advantages are 0 and its values are their own targets.
    """

    Config = GaeConfig

    def __init__(
        self, config: GaeConfig | None = None, context: BuildContext | None = None
    ) -> None:
        self._config = config or GaeConfig()

    @property
    def needs(self) -> frozenset[Need]:
        return self._config.needs

    def __call__(self, request: AdvantageRequest) -> AdvantageResult:
        config = self._config
        values = request.values
        assert values is not None
        known_B = ~request.rewards_F_B.isnan().all(0)
        totals_B = (request.rewards_F_B * request.weights_F[:, None]).nansum(0)
        advantages, kls = [], []
        for row, value_T in enumerate(values):
            reward_T = torch.zeros_like(value_T)
            if request.ref_log_ratios is not None:
                reward_T -= config.kl_coef * request.ref_log_ratios[row]
                kls.append(request.ref_log_ratios[row].sum())
            if len(reward_T):
                reward_T[-1] += totals_B[row]
            found = estimate(reward_T, value_T, gamma=config.gamma, lam=config.lam)
            advantages.append(found if known_B[row] else torch.zeros_like(found))
        targets = [a + v for a, v in zip(advantages, values, strict=True)]
        return AdvantageResult(
            token_advantages=whitened(advantages, known_B) if config.whiten else advantages,
            value_targets=targets,
            metrics={
                "value/explained_variance": explained_variance(targets, values),
                **({"kl/reference_sum": float(torch.stack(kls).mean())} if kls else {}),
            },
        )


def estimate(reward_T: Tensor, value_T: Tensor, *, gamma: float, lam: float) -> Tensor:
    """``A_t = sum_l (gamma lam)^l delta_{t+l}``, ``delta_t = r_t + gamma V_{t+1} - V_t``, of one
    rollout, ``(T,)``; ``V_T`` is 0."""
    next_T = torch.cat([value_T[1:], value_T.new_zeros(min(1, len(value_T)))])
    delta_T = reward_T + gamma * next_T - value_T
    found = torch.empty_like(delta_T)
    running = delta_T.new_zeros(())
    for t in range(len(delta_T) - 1, -1, -1):
        running = delta_T[t] + gamma * lam * running
        found[t] = running
    return found


def whitened(advantages: Sequence[Tensor], known_B: Tensor) -> list[Tensor]:
    """Mean 0 and sample variance 1 over the action tokens of rollouts that have a reward."""
    known = [a for a, known in zip(advantages, known_B.tolist(), strict=True) if known]
    flat_N = torch.cat([*known, torch.zeros(0, dtype=torch.float64)])
    if len(flat_N) < 2:
        return list(advantages)
    scale = 1 / (flat_N.std() + 1e-8)  # TRL's epsilon, of the variance there
    return [
        (a - flat_N.mean()) * scale if known else a
        for a, known in zip(advantages, known_B.tolist(), strict=True)
    ]


def explained_variance(targets: Sequence[Tensor], values: Sequence[Tensor]) -> float:
    """1 where values foretell the targets, 0 where a constant would do as well; 0 of a constant."""
    target_N, value_N = torch.cat(list(targets)), torch.cat(list(values))
    spread = float(target_N.var()) if len(target_N) > 1 else 0.0
    return 1 - float((target_N - value_N).var()) / spread if spread else 0.0
