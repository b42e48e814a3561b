"""A few tokens that are sampled only to see whether sampler and trainer hold the same weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpo_core.builtin.single_turn import SingleTurn
from grpo_core.trainer.attestation import attest, comparable, require_version
from grpo_core.trainer.observe import observe_mismatch
from grpo_core.trainer.sampling import places, request_of, together

if TYPE_CHECKING:
    from grpo_core.trainer.run import Run

TOKENS = 16
"""One block of vLLM's cache of keys and values on a GPU."""
WHOLE = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "stop": ()}
"""Draws from all tokens, whose log-probs every generator reports alike."""


def compare(run: Run, step: int) -> None:
    """Sample one completion on each rank with the weights of now, and compare what sampler and
    trainer think of it, where the tokens that are trained on cannot tell: they come from older
    weights, or their log-probs are of what ``top_p`` and the like have left.

    Raises:
        SyncError: their KL is above ``train.max_sampler_mismatch``.
    """
    if run.settings.max_sampler_mismatch is None:
        return
    if comparable(run) and run.settings.schedule != "ahead":
        return
    key = places(run)[0]
    most = min(run.sampling.max_tokens, TOKENS)
    with together(run):
        request = request_of(
            run,
            [run.prompts.at(step)[key]],
            keys=[key],
            step=step,
            sampling=run.sampling.model_copy(update={**WHOLE, "max_tokens": most}),
            group_size=1,
        )
        with run.attributed("generator", run.generator, "generate"):
            groups = list(SingleTurn().rollouts(request, run.generator))
    rollouts = [rollout for group in groups for rollout in group]
    require_version(run, rollouts)
    for rollout, logprobs in zip(rollouts, run.policy.logprobs(rollouts), strict=True):
        observe_mismatch(run.metrics, logprobs, run.policy.tensor(rollout.sampling_logprobs))
    attest(run)
