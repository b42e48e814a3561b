"""Combinations that cannot work, found before a step is taken, all at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpo_core.errors import ConfigError
from grpo_core.trainer.attestation import comparable
from grpo_core.trainer.evaluation import held_out
from grpo_core.types import Notice

if TYPE_CHECKING:
    from grpo_core.trainer.run import Run


def check(run: Run) -> None:
    """Raises ``ConfigError`` with every problem found in the composition of a run."""
    problems = [
        problem
        for problem in (
            _group_size(run),
            _reference(run),
            _values(run),
            _temperature(run),
            _ranks(run),
            _evaluation(run),
            _rewards(run),
            *_older_weights(run),
            *_ahead(run),
            _sampling_logprobs(run),
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
        asking = "advantage" if "ref_logprobs" in run.advantage_needs else "loss"
        return (
            f"{run.label(asking)} needs reference log-probs, but there is no reference. Set "
            "reference.name to 'frozen' (or 'adapter-off' with model.lora), or "
            f"{asking}.kl_coef to 0"
        )
    return None


def _values(run: Run) -> str | None:
    if ("values" in run.advantage_needs) != ("values" in run.loss_needs):
        trained = "values" in run.loss_needs
        return (
            f"{run.label('loss' if trained else 'advantage')} needs 'values', but "
            f"{run.label('advantage' if trained else 'loss')} does not: a value head is trained by "
            "the loss towards what the advantage sets; use the two that belong together"
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
    if run.evaluation is not None and not any(map(len, held_out(run).values())):
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


def _older_weights(run: Run) -> list[str]:
    """Completions of older weights, which only a ratio to these can correct."""
    asked, instead = "train.dynamic_sampling.replay_groups is set", "set it to 0"
    if run.settings.schedule == "ahead":
        asked, instead = "train.schedule is ahead", "set it to synchronous"
    elif run.replay is None:
        return []
    if "old_logprobs" not in run.needs:
        return [
            f"{asked}, but {run.label('loss')} takes no ratio to the policy that sampled (it does "
            "not need old_logprobs), so that completions of older weights would be taken for new "
            f"ones; {instead}, or take a loss with a ratio"
        ]
    if not comparable(run):
        return [
            f"{asked}, but {_processed(run)}, and the ratio of tokens of older weights would be "
            f"wrong; {instead}, or turn these off"
        ]
    return []


def _ahead(run: Run) -> list[str]:
    if run.settings.schedule != "ahead":
        return []
    found = []
    if not getattr(run.generator, "samples_apart", False):
        found.append(
            f"train.schedule is ahead, but {run.label('generator')} has no weights of its own "
            "(samples_apart): those that it samples with would change under it. Take vllm-server, "
            "give hf a device of its own (generator.device), or set train.schedule to synchronous"
        )
    in_flight = bool(getattr(run.generator, "syncs_in_flight", False))
    if run.settings.ahead_in_flight and not in_flight:
        found.append(
            f"train.ahead_in_flight is set, but {run.label('generator')} cannot take new weights "
            "while it samples (syncs_in_flight); set it to false"
        )
    return found


def _sampling_logprobs(run: Run) -> str | None:
    if "sampling_logprobs" in run.needs and not comparable(run):
        return (
            f"{run.label('loss')} compares trainer and sampler (sampling_logprobs), but "
            f"{_processed(run)}; turn these off, or take a loss that does not compare"
        )
    return None


def _processed(run: Run) -> str:
    return (
        f"the log-probs of {run.label('generator')} are not those of the policy with top_p, "
        "top_k, min_p or repetition_penalty (it says so: processed_logprobs)"
    )


def notices(run: Run) -> list[Notice]:
    """What works, but not as one may think; said once, when the run starts."""
    found = []
    if run.sampling.repetition_penalty != 1:
        found.append(
            Notice(
                code="off-policy-sampling",
                text=f"sampling.repetition_penalty is {run.sampling.repetition_penalty:g}: tokens "
                "are drawn from a distribution that depends on what was said before, and the "
                "gradient is that of the policy without it. Training is off-policy in every step, "
                "and no ratio corrects it. Set it to 1; where the trained policy is only used, a "
                "penalty does no harm.",
            )
        )
    return found
