"""Prompts to rollouts, through the environment and the generator."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from grpo_core.errors import PluginError
from grpo_core.trainer.prompts import encode_checked
from grpo_core.types import GenerateRequest, Prompt, Rollout, RolloutRequest

if TYPE_CHECKING:
    from grpo_core.settings import SamplingParams
    from grpo_core.trainer.run import Run


def places(run: Run) -> range:
    """Those of this rank among a step's prompts."""
    share = run.settings.prompts_per_step // run.policy.ranks
    return range(run.policy.rank * share, (run.policy.rank + 1) * share)


def request_of(
    run: Run,
    prompts: Sequence[Prompt],
    *,
    keys: Sequence[int],
    step: int,
    sampling: SamplingParams,
    group_size: int,
) -> RolloutRequest:
    """What the environment is asked for.

    Args:
        keys: each prompt's position over all ranks; becomes ``Rollout.group``.
        step: part of the key of every random number.

    Raises:
        DataError: a prompt does not fit the model.
    """
    return RolloutRequest(
        prompts_P=tuple(prompts),
        generate=GenerateRequest(
            step=step,
            seed=run.settings.seed,
            prompt_ids_P=tuple(encode_checked(run.policy, p, sampling.max_tokens) for p in prompts),
            prompt_keys_P=tuple(keys),
            group_size=group_size,
            sampling=sampling,
            eos_token_ids=run.policy.eos_token_ids,
            inputs_P=tuple(p.inputs for p in prompts) if any(p.inputs for p in prompts) else (),
        ),
        decode=run.policy.encoder.decode,
        encoder=run.policy.encoder,
        context_length=run.policy.context_length,
    )


def training_request(
    run: Run, step: int, places: Sequence[int], *, number: int = 0
) -> RolloutRequest:
    """One group at each of some places among a step's prompts; see ``Run.sample_round``."""
    prompts = run.prompts.at(step, number)
    return request_of(
        run,
        [prompts[place] for place in places],
        keys=[number * len(prompts) + place for place in places],
        step=step,
        sampling=run.sampling,
        group_size=run.settings.group_size,
    )


@contextmanager
def together(run: Run) -> Iterator[None]:
    """A round of sampling, which all ranks begin and end, those without prompts too; whatever fails
    on one of them belongs inside. See ``Generator``."""
    around = getattr(run.generator, "together", nullcontext)
    own: Exception | None = None
    with run.policy.autocast():
        try:
            with around():
                try:
                    yield
                except Exception as error:
                    own = error
                    raise
        except Exception as error:
            if error is own:
                raise
            with run.attributed("generator", run.generator, "together"):
                raise


def collect(
    run: Run, request: RolloutRequest, ready: Callable[[Sequence[Rollout]], None]
) -> list[Rollout]:
    """What the environment makes of it, sorted by (group, sample).

    Args:
        ready: takes each group as soon as it is there, while others are still sampled.

    Raises:
        PluginError: the environment failed, or returned other rollouts than were asked for.
    """
    if not request.prompts_P:
        return []
    with (
        run.policy.autocast(),
        run.attributed("environment", run.environment, "rollouts"),
    ):
        groups = []
        for group in run.environment.rollouts(request, run.generator):
            groups.append(group)
            ready(group)
    rollouts = sorted((r for group in groups for r in group), key=lambda r: (r.group, r.sample))
    keys, size = request.generate.prompt_keys_P, request.generate.group_size
    expected = [(key, member) for key in keys for member in range(size)]
    if [(r.group, r.sample) for r in rollouts] != expected:
        raise PluginError(
            f"{run.label('environment')} returned {len(rollouts)} rollouts for {len(keys)} "
            f"prompts x {size}; every (group, sample) is due exactly once"
        )
    return rollouts
