"""Prompts to rollouts, through the environment and the generator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from grpo_core.errors import PluginError
from grpo_core.trainer.prompts import encode_checked
from grpo_core.types import GenerateRequest, Prompt, Rollout, RolloutRequest

if TYPE_CHECKING:
    from grpo_core.settings import SamplingParams
    from grpo_core.trainer.run import Run


def sample(
    run: Run,
    prompts: Sequence[Prompt],
    *,
    keys: Sequence[int],
    step: int,
    sampling: SamplingParams,
    group_size: int,
    ready: Callable[[Sequence[Rollout]], None],
) -> list[Rollout]:
    """Rollouts of some prompts, sorted by (group, sample).

    Args:
        keys: each prompt's position over all ranks; becomes ``Rollout.group``.
        step: part of the key of every random number.
        ready: takes each group as soon as it is there, while others are still sampled.

    Raises:
        DataError: a prompt does not fit the model.
        PluginError: the environment failed, or returned other rollouts than were asked for.
    """
    if not prompts:
        return []
    request = RolloutRequest(
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
    with (
        run.policy.autocast(),
        run.attributed("environment", run.environment, "rollouts"),
    ):
        groups = []
        for group in run.environment.rollouts(request, run.generator):
            groups.append(group)
            ready(group)
    rollouts = sorted((r for group in groups for r in group), key=lambda r: (r.group, r.sample))
    expected = [(key, member) for key in keys for member in range(group_size)]
    if [(r.group, r.sample) for r in rollouts] != expected:
        raise PluginError(
            f"{run.label('environment')} returned {len(rollouts)} rollouts for {len(prompts)} "
            f"prompts x {group_size}; every (group, sample) is due exactly once"
        )
    return rollouts
