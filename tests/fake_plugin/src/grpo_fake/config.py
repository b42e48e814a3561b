"""Options; torch-free."""

from typing import ClassVar

from pydantic import Field

from grpo_core.settings import Settings


class LengthConfig(Settings):
    """What length is wanted."""

    target: int = Field(ge=1, description="Completion tokens, the end token included.")
    slope: float = Field(0.1, gt=0, description="Reward lost per token of difference.")


class ReinforceConfig(Settings):
    """Williams 1992."""

    default_advantage: ClassVar[str] = "fake-sign"
    kl_coef: float = Field(0.0, ge=0, description="Weight of the KL to the reference.")
