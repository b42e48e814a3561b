"""Rewards of all ranks to the advantages of this one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from grpo_core.errors import PluginError
from grpo_core.trainer.observe import observe_totals
from grpo_core.types import AdvantageRequest, AdvantageResult, Rollout, ScoredRollouts

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_core.trainer.run import Run


def compute_advantages(
    run: Run,
    rollouts: Sequence[Rollout],
    scored: ScoredRollouts,
    ref_logprobs: Sequence[Tensor] | None = None,
    values: Sequence[Tensor] | None = None,
) -> AdvantageResult:
    """Every rank computes the advantages of all rollouts and keeps its own: rewards are a few
    numbers per rollout, and some advantages need statistics over the whole step.

    Returns:
        Those of this rank's rollouts in both forms. Of advantages per token the mean stands for
        the rollout.

    Raises:
        PluginError: the advantage failed, or returned another number of them, or one that is not
            finite.
    """
    mine = [
        (r.group, r.action_count, values)
        for r, *values in zip(rollouts, *scored.values_F_B(), strict=True)
    ]
    everyone = run.policy.gather(mine)
    start = sum(run.policy.gather([len(mine)])[: run.policy.rank])
    position = {group: i for i, group in enumerate(sorted({group for group, _, _ in everyone}))}
    request = AdvantageRequest(
        rewards_F_B=torch.tensor([v for _, _, v in everyone], dtype=torch.float64).T,
        weights_F=torch.tensor(scored.weights_F, dtype=torch.float64),
        group_B=torch.tensor([position[group] for group, _, _ in everyone]),
        action_count_B=torch.tensor([count for _, count, _ in everyone]),
        ref_log_ratios=_ref_log_ratios(run, rollouts, ref_logprobs),
        values=values and run.policy.gather([v.double().cpu() for v in values]),
    )
    with run.attributed("advantage", run.advantage, "__call__"):
        result = run.advantage(request)
    advantages_B, token_advantages = _both_forms(run, request, result)
    if run.policy.is_main:
        observe_totals(run.metrics, request, advantages_B)
        for name, value in result.metrics.items():
            run.metrics.mean(name, value)
    targets = _value_targets(run, request, result)
    here = slice(start, start + len(mine))
    return AdvantageResult(
        advantages_B=advantages_B[here],
        token_advantages=token_advantages[here],
        value_targets=targets and targets[here],
    )


def _value_targets(
    run: Run, request: AdvantageRequest, result: AdvantageResult
) -> Sequence[Tensor] | None:
    who, targets = run.label("advantage"), result.value_targets
    if (targets is None) != (request.values is None):
        raise PluginError(
            f"{who} returned {'no ' if targets is None else ''}value_targets, which are due "
            "exactly when an advantage needs 'values'"
        )
    if targets is not None:
        _check(who, targets, [(n,) for n in request.action_count_B.tolist()], "value targets")
    return targets


def _ref_log_ratios(
    run: Run, rollouts: Sequence[Rollout], ref_logprobs: Sequence[Tensor] | None
) -> list[Tensor] | None:
    if ref_logprobs is None or "ref_logprobs" not in run.advantage_needs:
        return None
    sampled = [torch.tensor(r.sampling_logprobs, dtype=torch.float64) for r in rollouts]
    return run.policy.gather(
        [s - f.double().cpu() for s, f in zip(sampled, ref_logprobs, strict=True)]
    )


def _both_forms(
    run: Run, request: AdvantageRequest, result: AdvantageResult
) -> tuple[Tensor, list[Tensor]]:
    """Per rollout and per token, whichever the advantage answered in.

    Raises:
        PluginError: not exactly one form, a wrong shape, or an entry that is not finite.
    """
    who, counts = run.label("advantage"), request.action_count_B.tolist()
    per_rollout, per_token = result.advantages_B, result.token_advantages
    if per_token is not None and per_rollout is None:
        _check(who, per_token, [(n,) for n in counts])
        tokens = [a.double() for a in per_token]
        means = [float(a.mean()) if len(a) else 0.0 for a in tokens]
        return torch.tensor(means, dtype=torch.float64), tokens
    if per_rollout is not None and per_token is None:
        _check(who, [per_rollout], [(len(counts),)])
        rollouts_B = per_rollout.double()
        return rollouts_B, [a.expand(n) for a, n in zip(rollouts_B, counts, strict=True)]
    raise PluginError(
        f"{who} must return either advantages_B, one number per rollout, or token_advantages, "
        "one tensor per rollout"
    )


def _check(
    who: str, found: Sequence[Tensor], due: Sequence[tuple[int, ...]], what: str = "advantages"
) -> None:
    shapes = [tuple(a.shape) for a in found]
    infinite = sum(int((~a.isfinite()).sum()) for a in found)
    if len(shapes) != len(due):
        raise PluginError(f"{who} returned {len(shapes)} tensors of {what}, {len(due)} are due")
    for shape, expected in zip(shapes, due, strict=True):
        if shape != expected:
            raise PluginError(f"{who} returned {what} of shape {shape}, {expected} is due")
    if infinite:
        raise PluginError(
            f"{who} returned {infinite} {what} that are not finite; 0 stands for no signal"
        )
