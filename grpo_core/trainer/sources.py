"""Rewards by source, for tasks whose prompts come from several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grpo_core.metrics import StepMetrics
    from grpo_core.types import Rollout, ScoredRollouts


def observe_sources(
    metrics: StepMetrics, rollouts: Sequence[Rollout], scored: ScoredRollouts, prefix: str = ""
) -> None:
    """Per source and provider the mean over the rollouts with a value, and each source's share.

    A mean over all sources hides that one of them gets worse.
    """
    sources = [rollout.prompt.source for rollout in rollouts]
    for source in sorted({source for source in sources if source is not None}):
        metrics.ratio(f"{prefix}source/{source}/share", sources.count(source), len(sources))
        for name, values in zip(scored.providers_F, scored.values_F_B(), strict=True):
            of_source = [v for v, s in zip(values, sources, strict=True) if s == source and v == v]
            metrics.mean(f"{prefix}source/{source}/{name}", of_source)
