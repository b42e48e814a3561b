"""The one loss behind all names: an objective, a ratio level and terms, put together.

Per action token, in this order (as TRL 1.16)::

    loss = objective(ratio, advantage)
           * off-policy mask * top-entropy mask * sampler weight
           + kl_coef * KL [* ratio]
    plus, averaged over tokens whatever the aggregation:
           - entropy_coef * entropy * top-entropy mask
           + router_aux_coef * load balance of experts

So the KL is touched by no mask or weight. Masked tokens stay in the normaliser, except those of
truncated completions, which the core leaves out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from grpo_core.types import Aggregation, LossOutput, Need
from grpo_losses import config as presets
from grpo_losses.entropy import EntropyBonus
from grpo_losses.objectives import (
    MASKS_BY_ENTROPY_ITSELF,
    OBJECTIVES,
    WEIGHS_BY_SAMPLER_ITSELF,
    Material,
)
from grpo_losses.options import TRUNCATED
from grpo_losses.ratios import ratio
from grpo_losses.terms import kl, on_policy_enough, router_balance, sampler_weight

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_core.protocols import BuildContext
    from grpo_core.types import ActionTokens
    from grpo_losses.options import LossConfig


class PolicyLoss:
    """Any composition: ``PolicyLoss(CispoConfig(ratio="sequence", aggregation="constant"))``."""

    Config: ClassVar[type[LossConfig]]

    def __init__(
        self, config: LossConfig | None = None, context: BuildContext | None = None
    ) -> None:
        self.config = self.Config() if config is None else config
        self.aggregation: Aggregation = self.config.aggregation
        self.needs: frozenset[Need] = self.config.needs
        self.masks_truncated = self.config.mask_truncated
        self.skips_zero_advantage = self.config.is_silent_without_advantage
        self.entropy_bonus = EntropyBonus(self.config)

    def __call__(self, tokens: ActionTokens) -> LossOutput:
        """The loss per action token, and what was clipped and masked.

        Raises:
            ValueError: ``tokens`` lacks something that ``needs`` names.
        """
        c = self.config
        metrics: dict[str, Tensor] = {}
        x = self._material(tokens)
        objective = OBJECTIVES[c.objective](x, c)
        loss_N = objective.loss_N
        if c.ratio == "trajectory":
            # One number per rollout, shared by its tokens: their sum is the rollout's gradient.
            count_B = tokens.sum_per_rollout(loss_N.new_ones(loss_N.shape))
            loss_N = loss_N / tokens.spread(count_B)
        if c.off_policy_mask is not None:
            fresh_N = on_policy_enough(tokens, c.off_policy_mask)
            loss_N = loss_N * fresh_N
            metrics["ratio/off_policy_masked"] = ~fresh_N
        if x.keep_N is not None and c.objective not in MASKS_BY_ENTROPY_ITSELF:
            loss_N = loss_N * x.keep_N
        if x.sampler_weight_N is not None:
            if c.objective not in WEIGHS_BY_SAMPLER_ITSELF:
                loss_N = loss_N * x.sampler_weight_N
            metrics["ratio/sampler_weight"] = x.sampler_weight_N
        if c.kl_coef > 0:
            loss_N = loss_N + c.kl_coef * self._kl(x)
        mean_N = None
        if c.has_entropy_bonus:
            metrics["entropy/coef"] = loss_N.detach().new_full(
                loss_N.shape, self.entropy_bonus.applied
            )
            mean_N = self.entropy_bonus(tokens, x.keep_N)
        if c.router_aux_coef > 0:
            balance_N = router_balance(tokens)
            metrics["loss/router_balance"] = balance_N.detach()
            mean_N = c.router_aux_coef * balance_N + (0 if mean_N is None else mean_N)
        detached = {name: value.to(loss_N.dtype) for name, value in metrics.items()}
        return LossOutput(
            loss_N=loss_N, token_mean_N=mean_N, metrics={**objective.metrics, **detached}
        )

    def optimizer_step_done(self, gather: Callable[[list[Any]], list[Any]]) -> None:
        """The weights have moved; an adaptive coefficient follows."""
        self.entropy_bonus.optimizer_step_done(gather)

    def state_dict(self) -> dict[str, float]:
        """Of the adaptive coefficient; empty without one."""
        return self.entropy_bonus.state() if self.config.adaptive_entropy is not None else {}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from ``state_dict``."""
        if state:
            self.entropy_bonus.load_state(dict(state))

    def _material(self, tokens: ActionTokens) -> Material:
        c, old_N = self.config, tokens.old_logprobs_N
        if old_N is None:
            if "old_logprobs" in self.needs:
                raise ValueError("there are no old log-probs, which `needs` asks for")
            old_N = tokens.logprobs_N.detach()
        log_ratio_N = tokens.logprobs_N - old_N
        keep_N = weight_N = None
        if c.top_entropy < 1:
            if tokens.entropy_rank_N is None:
                raise ValueError("there are no entropy ranks, which `needs` asks for")
            keep_N = tokens.entropy_rank_N >= 1 - c.top_entropy
        correction = c.sampler_correction
        if correction == "auto":
            correction = TRUNCATED if tokens.sampler_differs else None
        if correction is not None:
            weight_N = sampler_weight(tokens, correction, old_N)
        return Material(
            tokens=tokens,
            log_ratio_N=log_ratio_N,
            ratio_N=ratio(c.ratio, tokens, log_ratio_N),
            keep_N=keep_N,
            sampler_weight_N=weight_N,
        )

    def _kl(self, x: Material) -> Tensor:
        c, ref_N = self.config, x.tokens.ref_logprobs_N
        if ref_N is None:
            raise ValueError(
                f"kl_coef is {c.kl_coef} but there are no reference log-probs; choose a reference "
                "(frozen, adapter-off) or set kl_coef to 0"
            )
        kl_N = kl(c.kl_estimator, x.tokens.logprobs_N, ref_N)
        return kl_N * x.ratio_N if c.kl_correction else kl_N


class Grpo(PolicyLoss):
    """Group Relative Policy Optimization (DeepSeekMath, arXiv 2402.03300)."""

    Config = presets.GrpoConfig


class Dapo(PolicyLoss):
    """Decoupled clip (DAPO, arXiv 2503.14476)."""

    Config = presets.DapoConfig


class DrGrpo(PolicyLoss):
    """GRPO done right (Dr. GRPO, arXiv 2503.20783)."""

    Config = presets.DrGrpoConfig


class Bnpo(PolicyLoss):
    """GRPO averaged over tokens (BNPO, arXiv 2506.02864)."""

    Config = presets.BnpoConfig


class Gspo(PolicyLoss):
    """Group Sequence Policy Optimization (GSPO, arXiv 2507.18071)."""

    Config = presets.GspoConfig


class GspoToken(PolicyLoss):
    """GSPO with each token's own gradient (arXiv 2507.18071)."""

    Config = presets.GspoTokenConfig


class Luspo(PolicyLoss):
    """Length-Unbiased Sequence Policy Optimization (LUSPO, arXiv 2602.05261)."""

    Config = presets.LuspoConfig


class Cispo(PolicyLoss):
    """Clipped importance weights (MiniMax-M1, arXiv 2506.13585)."""

    Config = presets.CispoConfig


class Sapo(PolicyLoss):
    """Soft Adaptive Policy Optimization (SAPO, arXiv 2511.20347)."""

    Config = presets.SapoConfig


class Gmpo(PolicyLoss):
    """Geometric-Mean Policy Optimization (GMPO, arXiv 2507.20673)."""

    Config = presets.GmpoConfig


class Vespo(PolicyLoss):
    """Smoothly weighted whole rollouts (VESPO, arXiv 2602.10693)."""

    Config = presets.VespoConfig


class Rloo(PolicyLoss):
    """REINFORCE Leave-One-Out (RLOO, arXiv 2402.14740)."""

    Config = presets.RlooConfig


class ReinforcePlusPlus(PolicyLoss):
    """Clipped REINFORCE normalised over the step (REINFORCE++, arXiv 2501.03262)."""

    Config = presets.ReinforcePlusPlusConfig


class Reinforce(PolicyLoss):
    """The plain policy gradient (Williams 1992)."""

    Config = presets.ReinforceConfig
