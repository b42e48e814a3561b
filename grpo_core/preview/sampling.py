"""Completions sampled as the first steps of a run would, without a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpo_core.errors import DataError
from grpo_core.trainer.sampling import collect, request_of

if TYPE_CHECKING:
    from grpo_core.trainer import Run
    from grpo_core.types import Rollout


def sampled(run: Run, prompts: int) -> list[Rollout]:
    """Groups of the first ``prompts`` prompts that the run would take; its folder stays untouched.

    They are the run's own in its first step; in later ones the policy would have moved.

    Raises:
        DataError: a prompt does not fit the model.
        ConfigError: several processes; a preview is made by one.
    """
    settings = run.settings
    per_step = settings.prompts_per_step
    try:
        run.policy.prepare(
            optimizer_steps=1,
            temperature=run.sampling.temperature or 1.0,
            tokens_per_microbatch=settings.tokens_per_microbatch,
            needs=frozenset(),
        )
        run.sync_weights(0)
        found: list[Rollout] = []
        for step in range(-(-prompts // per_step)):
            places = range(min(per_step, prompts - step * per_step))
            asked = run.prompts.at(step)
            request = request_of(
                run,
                [asked[place] for place in places],
                keys=[step * per_step + place for place in places],
                step=step,
                sampling=run.sampling,
                group_size=settings.group_size,
            )
            # Scored afterwards, twice, and timed.
            found += collect(run, request, lambda group: None)
    finally:
        run.generator.close()
    if not found:
        raise DataError("no completions were sampled")
    return found
