"""The clipped-ratio family: one general loss, and its named variants with their papers' defaults.

Per action token, with ``A`` the advantage::

    ratio = exp(logprobs - old_logprobs)
    loss  = -min(ratio * A, clamp(ratio, 1 - clip_low, 1 + clip_high) * A)
            + kl_coef * (exp(q) - q - 1)          q = ref_logprobs - logprobs
            - entropy_coef * entropy

How tokens are averaged is not decided here: ``aggregation`` names it and the core does it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from grpo_core.types import Aggregation, LossOutput, Need
from grpo_losses.config import ClippedConfig, DapoConfig, DrGrpoConfig, GrpoConfig
from grpo_losses.terms import clipped_surrogate, kl_k3

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_core.protocols import BuildContext
    from grpo_core.types import ActionTokens


class ClippedLoss:
    """A clipped policy term, KL to the reference, entropy bonus; the last two only if weighted.

    Departure from TRL: the entropy bonus is averaged like everything else in the loss, not by
    its own mean over tokens.
    """

    Config: ClassVar[type[ClippedConfig]] = ClippedConfig

    def __init__(
        self, config: ClippedConfig | None = None, context: BuildContext | None = None
    ) -> None:
        self.config = self.Config() if config is None else config
        self.aggregation: Aggregation = self.config.aggregation
        self.needs: frozenset[Need] = self._needs()
        # The policy term is proportional to the advantage; the regularisers are not.
        self.skips_zero_advantage = self.config.kl_coef == 0 and self.config.entropy_coef == 0

    def _needs(self) -> frozenset[Need]:
        needs: set[Need] = {"old_logprobs"}
        # Asking for less saves the core a forward pass of the reference, or a backward of entropy.
        if self.config.kl_coef > 0:
            needs.add("ref_logprobs")
        if self.config.entropy_coef > 0:
            needs.add("entropy")
        return frozenset(needs)

    def __call__(self, tokens: ActionTokens) -> LossOutput:
        """The loss per action token, and the share of tokens that each clip stopped.

        Raises:
            ValueError: ``tokens`` lacks something that ``needs`` names.
        """
        if tokens.old_logprobs_N is None:
            raise ValueError("there are no old log-probs, which `needs` asks for")
        surrogate = clipped_surrogate(
            tokens.logprobs_N - tokens.old_logprobs_N,
            tokens.advantages_N,
            clip_low=self.config.clip_low,
            clip_high=self.config.clip_high,
        )
        return LossOutput(
            loss_N=surrogate.loss_N + self._regularisers(tokens),
            metrics={
                "ratio/clip_low": surrogate.clipped_low_N.to(tokens.logprobs_N.dtype),
                "ratio/clip_high": surrogate.clipped_high_N.to(tokens.logprobs_N.dtype),
            },
        )

    def _regularisers(self, tokens: ActionTokens) -> Tensor | float:
        total: Tensor | float = 0.0
        if self.config.kl_coef > 0:
            if tokens.ref_logprobs_N is None:
                raise ValueError(
                    f"kl_coef is {self.config.kl_coef} but there are no reference log-probs; "
                    "choose a reference (frozen, adapter-off) or set kl_coef to 0"
                )
            total = self.config.kl_coef * kl_k3(tokens.logprobs_N, tokens.ref_logprobs_N)
        if self.config.entropy_coef > 0:
            total = total - self.config.entropy_coef * tokens.entropy_N
        return total


class Grpo(ClippedLoss):
    """Group Relative Policy Optimization (DeepSeekMath, arXiv 2402.03300): every rollout counts
    alike, ``1/B sum_i 1/T_i sum_t``.

    Departure from the paper: ``kl_coef`` is 0 rather than 0.04, as in TRL, so that no reference
    is held in memory unless it is asked for.
    """

    Config = GrpoConfig


class Dapo(ClippedLoss):
    """Decoupled clip (DAPO, arXiv 2503.14476): more room upwards, so that unlikely tokens can
    grow and entropy does not collapse; every token counts alike, ``1/sum_i T_i sum_i sum_t``.

    The paper's dynamic sampling and overlong punishment belong to other roles.
    """

    Config = DapoConfig


class DrGrpo(ClippedLoss):
    """GRPO done right (Dr. GRPO, arXiv 2503.20783): a constant in place of the length, ``1/(B *
    max_tokens) sum_i sum_t``, so that long wrong answers are not favoured; goes with the
    advantage ``none``, so that groups of nearly equal rewards are not blown up."""

    Config = DrGrpoConfig
