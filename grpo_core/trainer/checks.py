"""Combinations that cannot work, found before a step is taken, all at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpo_core.errors import ConfigError

if TYPE_CHECKING:
    from grpo_core.trainer.run import Run


def check(run: Run) -> None:
    """Raises ``ConfigError`` with every problem found in the composition of a run."""
    problems = [
        problem
        for problem in (
            _group_size(run),
            _reference(run),
            _temperature(run),
            _ranks(run),
            _evaluation(run),
            _rewards(run),
        )
        if problem
    ]
    if problems:
        raise ConfigError("; ".join(problems))


def _group_size(run: Run) -> str | None:
    least = int(getattr(run.advantage, "min_group_size", 1))
    if run.settings.group_size < least:
        return (
            f"train.group_size is {run.settings.group_size}, but {run.label('advantage')} "
            "compares the completions of one prompt with each other: every advantage would be 0. "
            f"Set train.group_size to {least} or more"
        )
    return None


def _reference(run: Run) -> str | None:
    if "ref_logprobs" in run.needs and (
        run.reference is None or run.reference.logprobs([]) is None
    ):
        return (
            f"{run.label('loss')} needs reference log-probs, but there is no reference. Set "
            "reference.name to 'frozen' (or 'adapter-off' with model.lora), or loss.kl_coef to 0"
        )
    return None


def _temperature(run: Run) -> str | None:
    if run.sampling.temperature == 0:
        return (
            "sampling.temperature is 0: all completions of a group would be the same, and no "
            "advantage could differ from 0. Use a temperature above 0, 1.0 for instance"
        )
    return None


def _ranks(run: Run) -> str | None:
    unit = run.policy.ranks * run.settings.minibatches_per_step
    if run.settings.prompts_per_step % unit:
        return (
            f"train.prompts_per_step is {run.settings.prompts_per_step}, which {run.policy.ranks} "
            f"processes x {run.settings.minibatches_per_step} minibatches do not divide; groups "
            f"stay whole, so use a multiple of {unit}"
        )
    return None


def _evaluation(run: Run) -> str | None:
    if run.evaluation is not None and not len(run.task.eval_prompts()):
        return (
            "evaluation is asked for, but the task has no held-out prompts; give it some, or set "
            "evaluation to null"
        )
    return None


def _rewards(run: Run) -> str | None:
    if not run.rewards:
        return (
            "there are no rewards: the config names none and the task brings none; add one under "
            "rewards"
        )
    return None
