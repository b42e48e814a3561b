"""Do sampler and trainer hold the same weights? Asked every step, at no extra cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from grpo_core.errors import SyncError

if TYPE_CHECKING:
    from grpo_core.trainer.run import Run
    from grpo_core.types import Rollout


def require_version(run: Run, rollouts: Sequence[Rollout], since: int | None = None) -> None:
    """Raises ``SyncError`` unless every sampled token comes from the policy as it is now, or has
    been ``since`` a version."""
    now = run.policy.version
    known = range(now if since is None else since, now + 1)
    versions = {s.policy_version for r in rollouts for s in r.spans if s.sampled}
    if any(version not in known for version in versions):
        asked = (
            f"{now}" if len(known) == 1 else f"{now}, and was at {known[0]} when they were asked"
        )
        raise SyncError(
            f"{run.label('generator')} sampled with policy versions "
            f"{sorted(map(str, versions))}, but the policy is at {asked}: new weights "
            "did not reach the sampler, or old completions were returned"
        )


def comparable(run: Run) -> bool:
    """Whether the generator's log-probs are of the same distribution as the trainer's."""
    processed = bool(getattr(run.generator, "processed_logprobs", False))
    return run.sampling.draws_from_policy or not processed


def exact(run: Run) -> bool:
    """Whether the generator's log-probs are the trainer's own to rounding."""
    # In 16 bits decoding and training round differently by more than ratios can bear.
    same = bool(getattr(run.generator, "exact_logprobs", False)) and not run.policy.mixed
    return same and comparable(run)


def attest(run: Run) -> None:
    """Compare what sampler and trainer think of the same tokens: of those in the first minibatch,
    from its own forward pass, or else of a canary's.

    Raises:
        SyncError: the KL from sampler to trainer is above ``train.max_sampler_mismatch``.
    """
    bound = run.settings.max_sampler_mismatch
    if bound is None:
        return
    found = run.metrics.value("ratio/sampler_mismatch_kl", run.policy.gather)
    # Written so that a NaN, from a generator that reports NaN log-probs, does not pass either.
    if found is not None and not found <= bound:
        raise SyncError(
            f"sampler and trainer disagree about the same tokens: KL {found:.3g} nats per token, "
            f"bound train.max_sampler_mismatch {bound}. Probably the sampler holds other weights "
            "(stale, or another checkpoint), samples at another temperature, or reports the "
            "log-probs after top-p, top-k, min-p or a repetition penalty without saying so "
            "(processed_logprobs); the metrics under ratio/sampler_mismatch tell more"
        )
