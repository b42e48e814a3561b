"""What a saver is asked to write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from grpo_core.types.evaluation import EvalResult
    from grpo_core.types.events import Metrics
    from grpo_core.types.policy import PolicyHandle


@dataclass(frozen=True, kw_only=True, slots=True)
class SaveRequest:
    """Write what leaves the run. Called on every rank, since sharded weights take all of them to
    gather; only ``policy.is_main`` writes files."""

    kind: Literal["checkpoint", "final"]
    """``checkpoint``: the state of training has just been written, and the run goes on."""
    step: int
    """Steps done so far."""
    run_dir: Path
    policy: PolicyHandle
    config: Mapping[str, Any]
    """The resolved config as plain data."""
    manifest: Sequence[Mapping[str, Any]]
    """The components in use: role, name, distribution, version, target, config."""
    metrics: Metrics
    """Of the last step, and of the evaluation after it; empty before the first."""
    history: Sequence[Metrics]
    """Metrics of every step, those before a resume too, for curves in a model card."""
    results: Sequence[EvalResult] = ()
    """Of the latest evaluation."""
    evaluations: Sequence[Metrics] = ()
    """Each with ``step``, the steps done before it, and its ``eval/`` metrics."""
