"""DAPO's soft punishment of long completions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpo_core.types import RewardOutcome, Value
from grpo_rewards.config import SoftOverlongConfig
from grpo_rewards.per_rollout import PerRollout

if TYPE_CHECKING:
    from grpo_core.protocols import BuildContext
    from grpo_core.types import Rollout


class SoftOverlong(PerRollout):
    """0 up to ``max_tokens - soft_tokens``, from there linearly down to -1 at ``max_tokens``, and
    -1 beyond (DAPO, arXiv 2503.14476, eq. 13).

    The length is the number of tokens that the policy sampled; what tools wrote does not count.
    With ``soft_tokens`` 0 there is no slope: 0 up to ``max_tokens``, -1 beyond.
    """

    Config = SoftOverlongConfig
    name = "soft-overlong"

    def __init__(self, config: SoftOverlongConfig, context: BuildContext | None = None) -> None:
        self._max, self._soft = config.max_tokens, config.soft_tokens

    def outcome(self, rollout: Rollout) -> RewardOutcome:
        over = rollout.action_count - (self._max - self._soft)
        if over <= 0:
            return Value(value=0.0)
        return Value(value=-1.0 if over > self._soft else -over / self._soft)
