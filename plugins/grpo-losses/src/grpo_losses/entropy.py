"""The entropy bonus and its coefficient, which may follow the entropy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_core.types import ActionTokens
    from grpo_losses.options import LossConfig


class EntropyBonus:
    """``-coef * entropy`` on the tokens that are kept; see ``AdaptiveEntropy`` for the rule by
    which the coefficient moves."""

    def __init__(self, config: LossConfig) -> None:
        self.coef = config.entropy_coef
        self._rule = config.adaptive_entropy
        self._last_entropy = math.inf
        self._sum = self._count = 0.0

    @property
    def applied(self) -> float:
        """What the entropy is multiplied by in this optimizer step."""
        if self._rule is not None and self._last_entropy > self._rule.target:
            return 0.0
        return self.coef

    def __call__(self, tokens: ActionTokens, keep_N: Tensor | None) -> Tensor:
        entropy_N = tokens.entropy_N if keep_N is None else tokens.entropy_N * keep_N
        if self._rule is not None:
            self._sum += float(entropy_N.detach().double().sum())
            self._count += len(entropy_N) if keep_N is None else int(keep_N.sum())
        return -self.applied * entropy_N

    def optimizer_step_done(self, gather: Callable[[list[Any]], list[Any]]) -> None:
        """Move the coefficient by the mean entropy over all microbatches and ranks."""
        if self._rule is None:
            return
        parts = gather([(self._sum, self._count)])
        self._sum = self._count = 0.0
        self._last_entropy = sum(s for s, _ in parts) / max(1.0, sum(n for _, n in parts))
        rise = self._last_entropy <= self._rule.target
        moved = self.coef + (self._rule.delta if rise else -self._rule.delta)
        self.coef = min(max(moved, self._rule.low), self._rule.high)

    def state(self) -> dict[str, float]:
        """What a resumed run needs to go on as if it had not stopped."""
        return {"coef": self.coef, "last_entropy": self._last_entropy}

    def load_state(self, state: dict[str, float]) -> None:
        self.coef, self._last_entropy = state["coef"], state["last_entropy"]
