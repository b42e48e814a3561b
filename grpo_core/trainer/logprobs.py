"""Old and reference log-probs and values of a rollout batch, computed only where they are not
known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from grpo_core.errors import PluginError
from grpo_core.trainer.attestation import exact

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_core.batching import RolloutBatch
    from grpo_core.trainer.run import Run
    from grpo_core.types import Rollout


def find_old_logprobs(run: Run, batch: RolloutBatch) -> None:
    """Those of the first minibatch come with its own forward pass; those of the others are the
    sampler's where it is known to be exact, and computed otherwise.

    Those of replayed rollouts are what the sampler of then reported, so that the ratio is to the
    policy that they come from. A microbatch has old log-probs of all of its rollouts or of none,
    so that with replay all are found beforehand.
    """
    rows = batch.rows_trained_later
    replayed = [row for row, r in enumerate(batch.rollouts) if not run.is_current(r)]
    if replayed:
        rows = [row for row, used in enumerate(batch.contributes) if used]
        for row in replayed:
            batch.old_logprobs[row] = run.policy.tensor(batch.rollouts[row].sampling_logprobs)
    rows = [row for row in rows if batch.old_logprobs[row] is None]
    if not rows:
        return
    with run.metrics.timed("old_logprobs"):
        found = _logprobs(run, [batch.rollouts[row] for row in rows], run.policy.logprobs)
    for row, logprobs in zip(rows, found, strict=True):
        batch.old_logprobs[row] = logprobs


def reference_logprobs(run: Run, rollouts: Sequence[Rollout]) -> list[Tensor] | None:
    """One tensor per rollout, or ``None`` when no term needs them.

    Raises:
        PluginError: the reference failed, or returned another number of tensors.
    """
    reference = run.reference
    if reference is None or not run.uses_reference:
        return None
    # While its weights are the policy's, its log-probs are too.
    same = getattr(reference, "equals_policy_version", None) == run.policy.version

    def compute(unknown: Sequence[Rollout]) -> list[Tensor]:
        found = reference.logprobs(unknown)
        if found is None or len(found) != len(unknown):
            raise PluginError(
                f"{run.label('reference')} returned log-probs of "
                f"{'no' if found is None else len(found)} rollouts; {len(unknown)} were asked for"
            )
        return found

    with (
        run.metrics.timed("reference"),
        run.attributed("reference", reference, "logprobs"),
    ):
        return _logprobs(run, rollouts, compute) if same else compute(rollouts)


def old_values(run: Run, rollouts: Sequence[Rollout]) -> list[Tensor] | None:
    """What the value head expects before the update, or ``None`` when no advantage needs it."""
    if "values" not in run.advantage_needs:
        return None
    with run.metrics.timed("old_logprobs"):
        return run.policy.values(rollouts)


def _logprobs(
    run: Run, rollouts: Sequence[Rollout], compute: Callable[[Sequence[Rollout]], list[Tensor]]
) -> list[Tensor]:
    """Log-probs under the policy's present weights: the sampler's where these are exact."""
    known = exact(run)
    unknown = [i for i, r in enumerate(rollouts) if not (known and run.is_current(r))]
    computed = compute([rollouts[i] for i in unknown]) if unknown else []
    found = dict(zip(unknown, computed, strict=True))
    return [
        found[i] if i in found else run.policy.tensor(r.sampling_logprobs)
        for i, r in enumerate(rollouts)
    ]
