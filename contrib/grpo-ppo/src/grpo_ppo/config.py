"""Options, with the defaults of TRL's PPOConfig. Nothing here imports torch."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from grpo_core.settings import Settings
from grpo_core.types import Need


class GaeConfig(Settings):
    """Generalised advantage estimation (arXiv 1506.02438) with a KL in the reward."""

    min_group_size: ClassVar[int] = 1

    gamma: float = Field(1.0, gt=0, le=1, description="Discount per action token.")
    lam: float = Field(
        0.95, ge=0, le=1, description="GAE's lambda: 0 trusts the values, 1 only the rewards."
    )
    kl_coef: float = Field(
        0.05,
        ge=0,
        description="Weight of each token's KL to the reference (k1), taken off its reward; above "
        "0 a reference is needed.",
    )
    whiten: bool = Field(
        True, description="Shift and scale advantages to mean 0 and variance 1 over the step."
    )

    @property
    def needs(self) -> frozenset[Need]:
        """What the core must compute."""
        return frozenset({"values", "ref_logprobs"} if self.kl_coef > 0 else {"values"})


class PpoConfig(Settings):
    """The clipped surrogate and the value loss (arXiv 1707.06347)."""

    needs: ClassVar[frozenset[Need]] = frozenset({"old_logprobs", "values"})
    default_advantage: ClassVar[str] = "gae"

    clip: float = Field(0.2, gt=0, description="The ratio counts within 1 - clip and 1 + clip.")
    value_clip: float | None = Field(
        0.2, gt=0, description="How far values count from where they were; null never clips."
    )
    value_coef: float = Field(0.1, ge=0, description="Weight of the value loss.")
