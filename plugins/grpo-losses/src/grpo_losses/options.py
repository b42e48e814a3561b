"""What losses can be told: one block of options per objective, the terms that all of them share,
and which combinations make no sense. Nothing here imports torch.

A named loss is one of these with its paper's numbers, see ``grpo_losses.config``.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from grpo_core.settings import Settings
from grpo_core.types import Aggregation, Need
from grpo_losses.formulas import describe

Ratio = Literal["token", "sequence", "sequence-token", "trajectory"]
"""Over what the ratio between the policy now and before the update is taken; see
``grpo_losses.ratios``."""

KlEstimator = Literal["k1", "k2", "k3"]


class SamplerCorrection(Settings):
    """Importance weights for a sampler whose probabilities differ from the trainer's (other
    kernels, other precision): ``w = exp(old_logprobs - sampling_logprobs)``, detached.

    ``{level: token, mode: truncate, high: 2}`` is truncated importance sampling (TIS);
    ``{level: token, mode: mask, low: 0.5, high: 5}`` is IcePop (arXiv 2510.18855).
    """

    level: Literal["token", "sequence", "geometric"] = Field(
        default="token",
        description="Of each token; of the whole rollout, by the sum of its log-ratios (exact, "
        "but far from 1 in long rollouts); or by their mean.",
    )
    mode: Literal["truncate", "mask"] = Field(
        default="truncate",
        description="Outside of the bounds: take the nearest bound, or leave the tokens out.",
    )
    low: float | None = Field(default=None, ge=0, description="Lower bound of the weight.")
    high: float | None = Field(default=None, gt=0, description="Upper bound of the weight.")

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.low is None and self.high is None:
            raise ValueError(
                "sampler_correction has neither low nor high: unbounded importance weights let one "
                "token outweigh the batch; set high (2 is usual)"
            )
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(
                f"sampler_correction.low is {self.low}, which is not below high, {self.high}"
            )
        return self


TRUNCATED = SamplerCorrection(high=2.0)
"""What ``auto`` is where there is something to correct."""


class AdaptiveEntropy(Settings):
    """A coefficient that follows the entropy (Skywork-OR1, arXiv 2505.22312): after each optimizer
    step it grows by ``delta`` if the entropy was at or below the target and shrinks otherwise; the
    bonus is only applied while the last entropy was at or below the target."""

    target: float = Field(default=0.2, ge=0, description="Entropy to hold, nats per token.")
    delta: float = Field(default=0.005, gt=0, description="Change per optimizer step.")
    low: float = Field(default=0.0, ge=0, description="Least coefficient.")
    high: float = Field(default=1.0, gt=0, description="Greatest coefficient.")


class LossConfig(Settings):
    """Options that every loss has. A class without ``objective`` is not a loss yet."""

    objective: ClassVar[str]
    """The function in ``grpo_losses.objectives``."""
    ratios: ClassVar[tuple[Ratio, ...]] = ("token", "sequence", "sequence-token", "trajectory")
    """The ratio levels that the objective has a meaning with."""
    why_ratios: ClassVar[str] = ""
    """Why not the others."""
    paper: ClassVar[str] = ""
    """arXiv id."""
    defaults: ClassVar[Mapping[str, Any]] = {}
    """The paper's numbers where they differ from those of the class that is inherited from."""
    default_advantage: ClassVar[str] = "group"

    ratio: Ratio = Field(
        default="token",
        description="Over what the ratio is taken: each token; the rollout, by the mean of its "
        "log-ratios (GSPO); the same with each token's own gradient (GSPO-token); the whole "
        "rollout, by their sum.",
    )
    aggregation: Aggregation = Field(
        default="token-mean", description="How tokens are averaged over an optimizer step."
    )
    kl_coef: float = Field(
        default=0.0,
        ge=0,
        description="Weight of the KL to the reference; above 0 a reference is needed. "
        "DeepSeekMath used 0.04; DAPO and Dr. GRPO found that 0 does as well.",
    )
    kl_estimator: KlEstimator = Field(
        default="k3", description="k1: log-ratio; k2: half its square; k3: never negative."
    )
    kl_correction: bool = Field(
        default=True,
        description="Multiply the KL by the ratio, which makes its gradient that of the KL "
        "(DeepSeek-V3.2, arXiv 2512.02556); false is DeepSeekMath's k3, whose gradient is another.",
    )
    entropy_coef: float = Field(
        default=0.0,
        ge=0,
        description="Weight of the entropy bonus, a mean over tokens whatever the aggregation; 0 "
        "saves its gradient. The starting value where it is adaptive.",
    )
    adaptive_entropy: AdaptiveEntropy | None = Field(
        default=None, description="Let the coefficient follow the entropy (arXiv 2505.22312)."
    )
    router_aux_coef: float = Field(
        default=0.0,
        ge=0,
        description="Weight of the load-balancing loss of a mixture of experts, taken over the "
        "action tokens of the whole optimizer step; 0 is off. Its own weight in pre-training "
        "stands in the model's config (router_aux_loss_coef, often 0.001).",
    )
    top_entropy: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Train on this share of the step's tokens, those of the highest entropy before "
        "the update (0.2 in arXiv 2506.01939). Below 1 it costs one forward pass per step.",
    )
    mask_truncated: bool = Field(
        default=False,
        description="Leave out completions that were cut off at sampling.max_tokens (DAPO's "
        "overlong filtering); they still count as rollouts.",
    )
    off_policy_mask: float | None = Field(
        default=None,
        description="Leave out rollouts of negative advantage whose tokens have become less likely "
        "by more than this since they were sampled, nats per token (arXiv 2512.02556).",
    )
    sampler_correction: SamplerCorrection | Literal["auto"] | None = Field(
        default="auto",
        description="Importance weights for a sampler that differs from the trainer. auto: where "
        "the generator's log-probs are the policy's, but not the trainer's to rounding, by token "
        "and truncated at 2 (TIS with ms-swift's bound). null: none.",
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Take over ``defaults``: bounds and descriptions stay those of the parent."""
        changed = cls.__dict__.get("defaults", {})
        for name, value in changed.items():
            field = copy(cls.model_fields[name])
            field.default = value
            cls.model_fields[name] = field
        if changed:
            cls.model_rebuild(force=True)

    @classmethod
    def describe(cls) -> str:
        """Composition, formula and paper, for ``grpo plugins show`` and the reference."""
        return describe(cls)

    @property
    def needs(self) -> frozenset[Need]:
        """What the core must compute; asking for less saves it forward passes."""
        needs: set[Need] = set()
        if self.objective != "reinforce" or (self.kl_coef and self.kl_correction):
            needs.add("old_logprobs")
        if self.kl_coef > 0:
            needs.add("ref_logprobs")
        if self.has_entropy_bonus:
            needs.add("entropy")
        if self.top_entropy < 1:
            needs.add("entropy_rank")
        if self.router_aux_coef > 0:
            needs.add("router_balance")
        if self.off_policy_mask is not None:
            needs.add("sampling_logprobs")
        if isinstance(self.sampler_correction, SamplerCorrection):
            needs |= {"old_logprobs", "sampling_logprobs"}
        return frozenset(needs)

    @property
    def is_silent_without_advantage(self) -> bool:
        """Whether a token of advantage 0 has gradient 0: the policy term is proportional to the
        advantage, the regularisers are not."""
        return not (self.kl_coef or self.has_entropy_bonus or self.router_aux_coef)

    @property
    def has_entropy_bonus(self) -> bool:
        return self.entropy_coef > 0 or self.adaptive_entropy is not None

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if self.ratio not in self.ratios:
            raise ValueError(
                f"ratio {self.ratio!r} has no meaning with objective {self.objective!r}: "
                f"{self.why_ratios}; use {' or '.join(map(repr, self.ratios))}"
            )
        if self.kl_coef and self.kl_estimator == "k1" and not self.kl_correction:
            raise ValueError(
                "kl_estimator 'k1' in the loss without kl_correction has a gradient whose mean is "
                "0, so that it restrains nothing; set kl_correction to true, or take it off the "
                "reward with advantage.kl_coef"
            )
        return self


class ClipConfig(LossConfig):
    """PPO's pessimistic objective (arXiv 1707.06347), with a bound for each side and an optional
    cap on the ratio of tokens to discourage."""

    objective: ClassVar[str] = "clip"

    clip_low: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="Ratios below 1 - clip_low earn no further gain (PPO's 0.2).",
    )
    clip_high: float = Field(
        default=0.2,
        ge=0,
        description="Ratios above 1 + clip_high earn no further gain (PPO's 0.2).",
    )
    clip_max: float | None = Field(
        default=None,
        description="Two-sided clipping: the ratio is never taken above this, so that a token of "
        "negative advantage that became likely cannot dominate (4 in arXiv 2505.07291).",
    )

    @model_validator(mode="after")
    def _cap_is_above_the_clip(self) -> Self:
        if self.clip_max is not None and self.clip_max <= 1 + self.clip_high:
            raise ValueError(
                f"clip_max is {self.clip_max}, which is not above 1 + clip_high, "
                f"{1 + self.clip_high:g}: it would take over from the clip; 4 is usual"
            )
        return self


class CispoConfig(LossConfig):
    """REINFORCE with a capped, detached importance weight: no token loses its gradient."""

    objective: ClassVar[str] = "cispo"
    ratios: ClassVar[tuple[Ratio, ...]] = ("token", "sequence")
    why_ratios: ClassVar[str] = (
        "its ratio is a detached weight, so that sequence-token would be the same as sequence, and "
        "a product over a whole rollout would be at the cap or near 0"
    )

    cap: float = Field(
        default=5.0,
        gt=0,
        description="Greatest importance weight (ScaleRL, arXiv 2510.13786, found 4 to 8 alike).",
    )


class SapoConfig(LossConfig):
    """A sigmoid gate around ratio 1 in place of a clip."""

    objective: ClassVar[str] = "sapo"

    temperature_pos: float = Field(
        default=1.0, gt=0, description="Steepness of the gate for positive advantages."
    )
    temperature_neg: float = Field(
        default=1.05, gt=0, description="For the others; steeper, because they destabilise."
    )


class GmpoConfig(LossConfig):
    """The geometric mean of clipped token ratios as the weight of a rollout."""

    objective: ClassVar[str] = "gmpo"
    ratios: ClassVar[tuple[Ratio, ...]] = ("token",)
    why_ratios: ClassVar[str] = "it clips the tokens' ratios and takes their geometric mean itself"

    clip_low: float = Field(
        default=0.4, ge=0, description="Bound on falling log-ratios, in nats: ratio e^-0.4."
    )
    clip_high: float = Field(
        default=0.4, ge=0, description="Bound on rising log-ratios, in nats: ratio e^0.4."
    )


class VespoConfig(LossConfig):
    """A smooth weight on whole rollouts, ``w^k exp(lambda (1 - w))``, detached."""

    objective: ClassVar[str] = "vespo"
    ratios: ClassVar[tuple[Ratio, ...]] = ("token",)
    why_ratios: ClassVar[str] = "it weighs whole rollouts by the product of their tokens' ratios"

    k_pos: float = Field(default=2.0, ge=0, description="Power for advantages of 0 and above.")
    lambda_pos: float = Field(default=3.0, gt=0, description="Decay for advantages of 0 and above.")
    k_neg: float = Field(default=3.0, ge=0, description="Power for negative advantages.")
    lambda_neg: float = Field(default=2.0, gt=0, description="Decay for negative advantages.")

    @model_validator(mode="after")
    def _corrects_by_token(self) -> Self:
        given = self.sampler_correction
        if isinstance(given, SamplerCorrection) and given.level != "token":
            raise ValueError(
                f"sampler_correction.level {given.level!r} has no meaning with "
                "objective 'vespo', which multiplies the tokens' corrections into its weight of "
                "the rollout; use 'token'"
            )
        return self


class ReinforceConfig(LossConfig):
    """The plain policy gradient: no ratio, so one optimizer step per batch."""

    objective: ClassVar[str] = "reinforce"
    ratios: ClassVar[tuple[Ratio, ...]] = ("token",)
    why_ratios: ClassVar[str] = "it has no ratio"
