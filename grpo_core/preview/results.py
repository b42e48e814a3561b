"""What is found out about each reward, as plain data."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from grpo_core.types import Abstained, Failed, RewardOutcome, Value

MOST_BARS = 10
"""Of a histogram: as many distinct values have a bar each, more are put into bins."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """One bar of a histogram. Example: ``Bar(low=0.0, high=0.0, count=37)``, a single value."""

    low: float
    high: float
    """Equal to ``low`` for a single value; else the bin is ``low <= x < high``, the last closed."""
    count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Distribution:
    """Of some numbers; all ``None`` without any."""

    count: int
    mean: float | None
    std: float | None
    """Of the population."""
    min: float | None
    max: float | None
    bars: tuple[Bar, ...] = ()

    @classmethod
    def of(cls, values: Sequence[float]) -> Distribution:
        if not values:
            return cls(count=0, mean=None, std=None, min=None, max=None)
        return cls(
            count=len(values),
            mean=statistics.fmean(values),
            std=statistics.pstdev(values),
            min=min(values),
            max=max(values),
            bars=_bars(values),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Latency:
    """Seconds of the calls of a provider."""

    calls: int
    p50: float
    p95: float
    total: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latency:
        return cls(
            calls=len(seconds),
            p50=percentile(seconds, 50),
            p95=percentile(seconds, 95),
            total=math.fsum(seconds),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """A rollout that got two different outcomes for the same question."""

    prompt: str
    sample: int
    first: str
    second: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ProviderResult:
    """All that is known of one provider."""

    name: str
    weight: float
    on_error: str
    values: Distribution
    abstained: int
    failed: dict[str, int]
    """By kind: error, timeout, invalid."""
    first_failure: str | None
    traceback: str | None
    """Of the first failure, where something was raised."""
    latency: Latency
    groups_without_signal: int
    """Groups of two or more values that are all the same."""
    groups: int
    """Groups with two or more values."""
    differences: tuple[Difference, ...]
    """Rollouts that were scored otherwise the second time."""

    @property
    def failures(self) -> int:
        return sum(self.failed.values())

    @property
    def asked(self) -> int:
        return self.values.count + self.abstained + self.failures

    @property
    def broken(self) -> bool:
        """Whether a run with it would stop."""
        return self.failures > 0 and (self.on_error == "stop" or self.failures == self.asked)


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One rollout with what the providers said."""

    prompt_id: str
    prompt: str
    completion: str
    tokens: int
    truncated: bool
    rewards: dict[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Preview:
    """The whole of ``grpo preview``."""

    prompts: int
    rollouts: int
    unit: str
    """What lengths count: ``tokens``, or ``bytes`` where no tokenizer was to be had."""
    lengths: Distribution
    truncated: float
    """Share of the rollouts that were cut off."""
    rollout_errors: int
    """Rollouts that failed themselves; no provider is asked about them."""
    totals: Distribution
    """Weighted sums over the providers with a value."""
    groups_without_signal: int
    groups: int
    """Groups in which two or more rollouts have a total."""
    providers: tuple[ProviderResult, ...]
    examples: tuple[Example, ...]

    @property
    def broken(self) -> tuple[str, ...]:
        return tuple(provider.name for provider in self.providers if provider.broken)


def said(outcome: RewardOutcome) -> str:
    """An outcome in a word or a number."""
    match outcome:
        case Value(value=value):
            return f"{value:.4g}"
        case Abstained():
            return "abstained"
        case Failed(kind=kind):
            return f"failed ({kind})"


def failures(outcomes: Sequence[RewardOutcome]) -> dict[str, int]:
    """How many failed, by kind."""
    return dict(Counter(o.kind for o in outcomes if isinstance(o, Failed)))


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest rank: the least value that ``percent`` of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)] if ordered else 0.0


def without_signal(groups: Sequence[int], values: Sequence[float]) -> tuple[int, int]:
    """How many groups have one value only, of those with two or more that are not NaN."""
    members: dict[int, list[float]] = {}
    for group, value in zip(groups, values, strict=True):
        if not math.isnan(value):
            members.setdefault(group, []).append(value)
    several = [found for found in members.values() if len(found) > 1]
    return sum(min(found) == max(found) for found in several), len(several)


def _bars(values: Sequence[float]) -> tuple[Bar, ...]:
    counts = Counter(values)
    if len(counts) <= MOST_BARS:
        return tuple(Bar(low=v, high=v, count=n) for v, n in sorted(counts.items()))
    low, high = min(values), max(values)
    width = (high - low) / MOST_BARS
    found = Counter(min(MOST_BARS - 1, int((v - low) / width)) for v in values)
    return tuple(
        Bar(low=low + i * width, high=low + (i + 1) * width, count=found[i])
        for i in range(MOST_BARS)
    )
