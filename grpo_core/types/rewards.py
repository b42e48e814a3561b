"""What a reward provider is asked, and what it may answer: a value, nothing, or a failure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from grpo_core.types.rollouts import Rollout


@dataclass(frozen=True, kw_only=True, slots=True)
class Value:
    """A score. Example: ``Value(value=1.0)``."""

    value: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Abstained:
    """The provider has nothing to say about this rollout (``None`` in TRL's convention)."""

    reason: str = ""


FailureKind = Literal["error", "timeout", "invalid"]
"""``error``: it raised, or its process died; ``timeout``: no answer in time; ``invalid``: what it
returned is no reward."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failed:
    """The provider could not score; never turned into 0.0.

    Example: ``Failed(kind="timeout", reason="no answer within 10 s")``.
    """

    kind: FailureKind
    reason: str


RewardOutcome = Value | Abstained | Failed


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainerState:
    """How far the run is, under the names of transformers' ``TrainerState``.

    Example: ``TrainerState(global_step=40, max_steps=200, epoch=0.2, num_train_epochs=1)``.
    """

    global_step: int
    """Optimizer steps done."""
    max_steps: int
    """Optimizer steps of the whole run."""
    epoch: float
    """Prompts drawn so far, as a share of the task's."""
    num_train_epochs: int
    """What ``epoch`` comes to at the end, rounded up."""


class RewardLog:
    """What a provider writes down beside its scores: a column of the rollouts, or a metric."""

    def __init__(self, rollouts: int) -> None:
        self._rollouts = rollouts
        self.columns: dict[str, list[Any]] = {}
        self.metrics: dict[str, list[float]] = {}

    def extra(self, column: str, values: Sequence[Any]) -> None:
        """One value per rollout of this request, to be kept with it (TRL: ``log_extra``).

        Arrays become lists, what is no plain data becomes text.

        Raises:
            ValueError: another number of values than there are rollouts. A column that is one
                short would stand beside the wrong completions.
        """
        found = [plain(value) for value in values]
        if len(found) != self._rollouts:
            raise ValueError(
                f"log_extra({column!r}) got {len(found)} values for {self._rollouts} completions"
            )
        self.columns[str(column)] = found

    def metric(self, name: str, value: float) -> None:
        """A number for ``reward/<provider>/<name>``: the mean over calls and ranks (TRL:
        ``log_metric``).

        Raises:
            ValueError: it is no number, or the core has a metric of that name.
        """
        if name in OWN_METRICS:
            raise ValueError(
                f"log_metric({name!r}) takes the name of one of the core's metrics of "
                f"every reward ({', '.join(sorted(OWN_METRICS))}); choose another"
            )
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise ValueError(f"log_metric({name!r}) got {value!r}, which is no number") from None
        self.metrics.setdefault(str(name), []).append(number)


OWN_METRICS = frozenset(
    ("mean", "std", "square", "abstained", "failed", "error", "timeout", "invalid", "dropped")
) | {"retries", "abandoned", "restarts"}
"""What the core reports of every provider under ``reward/<provider>/``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreRequest:
    """Rollouts to be scored: whole groups, the members of a group next to each other.

    One group, or all of this rank's for a provider with ``needs_batch``. Rollouts that failed
    themselves are left out.
    """

    step: int
    rollouts_B: tuple[Rollout, ...]
    trainer_state: TrainerState | None = None
    """``None`` outside a run."""
    log: RewardLog = field(init=False, compare=False, repr=False)
    """Where to write down more than scores."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "log", RewardLog(len(self.rollouts_B)))


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredRollouts:
    """Outcomes of every provider for every rollout of this rank.

    Example: ``outcomes_F_B[0][3]`` is what the first provider said of the fourth rollout.
    """

    providers_F: tuple[str, ...]
    weights_F: tuple[float, ...]
    outcomes_F_B: tuple[tuple[RewardOutcome, ...], ...]
    dropped_B: tuple[bool, ...] = ()
    """Rollouts that take no part, because a provider failed on them or on one of their group."""
    logged_B: tuple[Mapping[str, Any], ...] = ()
    """``<provider>/<column>`` to what the provider logged of this rollout, as plain data."""

    def __post_init__(self) -> None:
        # Left out means: nothing dropped, nothing logged.
        count = len(self.outcomes_F_B[0]) if self.outcomes_F_B else 0
        if not self.dropped_B:
            object.__setattr__(self, "dropped_B", (False,) * count)
        if not self.logged_B:
            object.__setattr__(self, "logged_B", ({},) * count)

    def values_F_B(self) -> list[list[float]]:
        """What advantages are computed from: NaN where a provider has no value, and for all
        providers where the rollout was dropped. The values that the others gave must not stand
        for the whole reward: a failure would then count as 0."""
        nan = float("nan")
        return [
            [
                o.value if isinstance(o, Value) and not dropped else nan
                for o, dropped in zip(outcomes, self.dropped_B, strict=True)
            ]
            for outcomes in self.outcomes_F_B
        ]

    def given_F_B(self) -> list[list[float]]:
        """What each provider said, of dropped rollouts too: NaN only where it gave no value."""
        nan = float("nan")
        return [
            [o.value if isinstance(o, Value) else nan for o in outcomes]
            for outcomes in self.outcomes_F_B
        ]


def plain(value: Any) -> Any:
    """As JSON can hold it."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value)
