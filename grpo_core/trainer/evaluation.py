"""Held-out prompts, sampled and scored; nothing is trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from grpo_core.metrics import StepMetrics
from grpo_core.trainer.observe import observe_lengths
from grpo_core.trainer.sampling import sample
from grpo_core.types import Evaluated

if TYPE_CHECKING:
    from grpo_core.trainer.run import Run

Label = Literal["sampled", "greedy"]


def evaluate(run: Run, steps_done: int) -> list[Evaluated]:
    """One completion per held-out prompt for each kind of sampling asked for.

    The generator gets the current weights first. Returns one event per kind, with metrics over
    all ranks: ``eval/<label>/<provider>`` is a mean over the prompts with a value.
    """
    settings = run.evaluation
    if settings is None:
        return []
    run.sync_weights(steps_done)
    labels: list[Label] = []
    if settings.sampled:
        labels.append("sampled")
    if settings.greedy:
        labels.append("greedy")
    return [_evaluate(run, steps_done, label, settings.prompts) for label in labels]


def _evaluate(run: Run, steps_done: int, label: Label, limit: int) -> Evaluated:
    prompts = run.task.eval_prompts()
    count = min(limit, len(prompts))
    mine = range(run.policy.rank, count, run.policy.ranks)
    sampling = run.sampling
    if label == "greedy":
        sampling = sampling.model_copy(update={"temperature": 0.0})
    rollouts = sample(
        run,
        [prompts[i] for i in mine],
        keys=list(mine),
        # Evaluations draw other random numbers than any step of training.
        step=-1 - steps_done,
        sampling=sampling,
        group_size=1,
    )
    scored = run.scorer.score(steps_done, rollouts)
    metrics = StepMetrics()
    prefix = f"eval/{label}"
    for name, values in zip(scored.providers_F, scored.values_F_B(), strict=True):
        metrics.mean(f"{prefix}/{name}", [v for v in values if v == v])
    observe_lengths(metrics, rollouts, f"{prefix}/length")
    return Evaluated(
        step=steps_done,
        label=label,
        metrics=metrics.reduced(run.policy.gather),
        rollouts_B=rollouts,
    )
