"""The `single-turn` environment: one completion is one rollout."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpo_core.errors import PluginError
from grpo_core.types import Completion, GeneratedGroup, Rollout, RolloutRequest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from grpo_core.protocols import Generator


class SingleTurn:
    """Hands each group on as soon as the generator has it, so that scoring can begin."""

    def rollouts(
        self, request: RolloutRequest, generator: Generator
    ) -> Iterator[Sequence[Rollout]]:
        """Yield ``group_size`` rollouts of one prompt at a time.

        Raises:
            PluginError: the generator did not return every group once and whole. A group that
                is missing or doubled would train the policy on another mix of prompts than the
                run says, without any sign of it.
        """
        waiting = set(range(len(request.generate.prompt_ids_P)))
        for group in generator.generate(request.generate):
            _check(group, request, waiting, _name(generator))
            waiting.remove(group.index)
            yield [
                _rollout(request, group, sample, completion)
                for sample, completion in enumerate(group.completions_G)
            ]
        if waiting:
            raise PluginError(
                f"generator {_name(generator)} returned no completions for prompts "
                f"{sorted(waiting)} of {len(request.generate.prompt_ids_P)} in step "
                f"{request.generate.step}; generate() must yield one group per prompt"
            )


def _rollout(
    request: RolloutRequest, group: GeneratedGroup, sample: int, completion: Completion
) -> Rollout:
    return Rollout(
        prompt=request.prompts_P[group.index],
        prompt_ids=request.generate.prompt_ids_P[group.index],
        group=request.generate.prompt_keys_P[group.index],
        sample=sample,
        spans=completion.spans(group.policy_version),
        text=request.decode(completion.token_ids),
        finish_reason=completion.finish_reason,
    )


def _check(
    group: GeneratedGroup, request: RolloutRequest, waiting: set[int], generator: str
) -> None:
    prompts, size = len(request.generate.prompt_ids_P), request.generate.group_size
    if group.index not in waiting:
        seen = 0 <= group.index < prompts
        raise PluginError(
            f"generator {generator} returned group {group.index} "
            + ("twice" if seen else f"of a request with {prompts} prompts")
            + "; each prompt's position must come exactly once"
        )
    if len(group.completions_G) != size:
        raise PluginError(
            f"generator {generator} returned {len(group.completions_G)} completions for prompt "
            f"{group.index}; the request asked for group_size={size}"
        )
    for sample, completion in enumerate(group.completions_G):
        # Said here, because the span's own error could not tell whose mistake it is.
        for what, values in (
            ("log-probs", completion.logprobs),
            ("values of kept_logmass", completion.kept_logmass),
            ("policy_versions", completion.policy_versions),
        ):
            if values is not None and len(values) != len(completion.token_ids):
                raise PluginError(
                    f"generator {generator} returned {len(completion.token_ids)} tokens but "
                    f"{len(values)} {what} for completion {sample} of prompt {group.index}; it "
                    "must report one per sampled token"
                )


def _name(generator: Generator) -> str:
    return f"{type(generator).__module__}.{type(generator).__qualname__}"
