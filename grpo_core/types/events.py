"""One frozen event per lifecycle hook; new fields break nobody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from grpo_core.types.evaluation import EvalResult
    from grpo_core.types.rewards import ScoredRollouts
    from grpo_core.types.rollouts import Rollout

Metrics = Mapping[str, float]
"""``group/name`` to a number: ``{"reward/mean": 0.4, "loss/total": -0.02}``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Notice:
    """Something a person should know: what was seen, why it matters, what to do.

    Example: ``Notice(code="no-signal", text="in every group all completions had the same ...")``.
    """

    code: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RunStart:
    """The run folder exists, models are loaded, nothing has been sampled."""

    run_dir: Path
    steps: int
    first_step: int
    """0, or the step at which a resumed run goes on."""
    config: Mapping[str, Any]
    """The resolved config as plain data."""
    derived: Mapping[str, Any]
    """Counts that follow from the config: ``{"rollouts_per_step": 128, ...}``."""
    notices: Sequence[Notice] = ()
    """What works, but not as one may think."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutsScored:
    """The rollouts of a step, over all ranks, with outcomes and advantages; groups that dynamic
    sampling replaced are among them, with advantage 0."""

    step: int
    rollouts_B: Sequence[Rollout]
    scored: ScoredRollouts
    advantages_B: Sequence[float]


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightsSynced:
    """The generator has confirmed that it holds ``policy_version``."""

    step: int
    policy_version: int
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluated:
    """Held-out prompts were sampled and scored."""

    step: int
    """Steps done so far: 0 before training, ``steps`` at the end."""
    label: str
    """The data set and how it was sampled: ``"greedy"``, ``"gsm8k:greedy"``."""
    metrics: Metrics
    """``eval/<label>/<name>`` to a number over the prompts of all ranks."""
    rollouts_B: Sequence[Rollout]
    """The rollouts of this rank, samples of a prompt next to each other."""
    scored: ScoredRollouts | None = None
    """What the rewards said of them."""
    results: Sequence[EvalResult] = ()
    """The same numbers as in ``metrics``, with intervals."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepEnd:
    """One step is complete: its metrics over all ranks, and what is worth saying about them."""

    step: int
    """Counted from 0; ``step + 1`` steps are done."""
    steps: int
    policy_version: int
    metrics: Metrics
    notices: Sequence[Notice] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointSaved:
    """``path`` has been written completely."""

    step: int
    path: Path
    kind: Literal["checkpoint", "model", "final"]
    """``checkpoint``: the state of training; ``model``: what a saver wrote at a checkpoint;
    ``final``: what a saver wrote at the end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunEnd:
    """The last event of a run, also after an interrupt or an error."""

    run_dir: Path
    status: Literal["finished", "interrupted", "failed"]
    steps_done: int
    metrics: Metrics = field(default_factory=dict)
    """The last step's metrics."""
    artifacts: Mapping[str, Path] = field(default_factory=dict)
    """What lies where: ``{"final": Path("runs/a/final")}``."""
    error: str | None = None
