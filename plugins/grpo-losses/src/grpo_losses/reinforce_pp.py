"""REINFORCE++: normalised over the whole step, per token once a KL is taken off the reward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch

from grpo_core.types import AdvantageRequest, AdvantageResult
from grpo_losses.advantage_options import GlobalConfig, ScaledConfig
from grpo_losses.advantages import STD_EPSILON, require_groups
from grpo_losses.groups import Groups, std
from grpo_losses.rewards import log_ratios, total_rewards

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_core.protocols import BuildContext
    from grpo_core.types import Need


class ReinforcePlusPlusAdvantage:
    """``(G - mean) / (std + 1e-4)`` over all action tokens of the step (arXiv 2501.03262), where
    ``G_t = r - kl_coef * (sum of k1 from token t on)``.

    Mean and deviation count tokens, not rollouts, so that a long rollout weighs more in them: the
    paper's "over the batch", as the authors' OpenRLHF computes it. With ``std: population`` this is
    OpenRLHF's number and with ``sample`` verl's, but for the 1e-4, which both have as 1e-8 within
    the root. Without a KL every token of a rollout has the same advantage.
    """

    Config: ClassVar[type[ScaledConfig]] = GlobalConfig
    name: ClassVar[str] = "reinforce-pp"
    min_group_size: ClassVar[int] = GlobalConfig.min_group_size

    def __init__(
        self, config: ScaledConfig | None = None, context: BuildContext | None = None
    ) -> None:
        del context
        self.config = self.Config() if config is None else config
        self.needs: frozenset[Need] = self.config.needs

    def baseline(self, groups: Groups) -> Tensor | float:
        """What is taken off a rollout's reward before all are normalised together."""
        return 0.0

    def __call__(self, request: AdvantageRequest) -> AdvantageResult:
        """Advantages of one step, per token.

        Raises:
            ConfigError: groups are too small, or there is no reference for the KL.
        """
        rewards_B = total_rewards(request)
        groups = Groups.of(request.group_B, rewards_B)
        require_groups(self.name, self.min_group_size, groups)
        returns_B = rewards_B - self.baseline(groups)
        counts = request.action_count_B.tolist()
        returns_N = returns_B.repeat_interleave(request.action_count_B)
        if self.config.kl_coef > 0:
            returns_N = returns_N - self.config.kl_coef * _from_here_on(log_ratios(request))
        known_N = returns_N[~returns_N.isnan()]
        if not len(known_N) or known_N.min() == known_N.max():
            return AdvantageResult(
                token_advantages=returns_N.new_zeros(len(returns_N)).split(counts)
            )
        scaled_N = (returns_N - known_N.mean()) / (std(known_N, self.config.std) + STD_EPSILON)
        return AdvantageResult(token_advantages=scaled_N.nan_to_num(nan=0.0).split(counts))


class ReinforcePlusPlusBaselineAdvantage(ReinforcePlusPlusAdvantage):
    """The same after the mean of the group is taken off (REINFORCE++-baseline). The paper then has
    its KL in the loss: ``loss.kl_coef`` with ``kl_estimator: k2``."""

    Config = ScaledConfig
    name = "reinforce-pp-baseline"
    min_group_size = ScaledConfig.min_group_size

    def baseline(self, groups: Groups) -> Tensor | float:
        return groups.mean_B


def _from_here_on(log_ratios: Sequence[Tensor]) -> Tensor:
    """Per token the sum over itself and all later tokens of its rollout, ``(N,)``."""
    return torch.cat([x.flip(0).cumsum(0).flip(0) for x in log_ratios])
