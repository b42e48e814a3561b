"""What a reward provider is asked, and what it may answer: a value, nothing, or a failure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from grpo_core.types.rollouts import Rollout


@dataclass(frozen=True, kw_only=True, slots=True)
class Value:
    """A score. Example: ``Value(value=1.0)``."""

    value: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Abstained:
    """The provider has nothing to say about this rollout (``None`` in TRL's convention)."""

    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failed:
    """The provider could not score; never turned into 0.0.

    Example: ``Failed(kind="timeout", reason="no answer within 10 s")``.
    """

    kind: Literal["error", "timeout", "invalid"]
    reason: str


RewardOutcome = Value | Abstained | Failed


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreRequest:
    """Rollouts to be scored: whole groups, the members of a group next to each other."""

    step: int
    rollouts_B: tuple[Rollout, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredRollouts:
    """Outcomes of every provider for every rollout of this rank.

    Example: ``outcomes_F_B[0][3]`` is what the first provider said of the fourth rollout.
    """

    providers_F: tuple[str, ...]
    weights_F: tuple[float, ...]
    outcomes_F_B: tuple[tuple[RewardOutcome, ...], ...]

    def values_F_B(self) -> list[list[float]]:
        """The same as numbers, NaN where there is no value (abstained or failed)."""
        nan = float("nan")
        return [
            [o.value if isinstance(o, Value) else nan for o in outcomes]
            for outcomes in self.outcomes_F_B
        ]
