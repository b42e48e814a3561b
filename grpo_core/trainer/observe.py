"""The metrics of a step, from rollouts, rewards and action tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, get_args

import torch

from grpo_core.errors import PluginError
from grpo_core.numerics import bounded, kl_k3
from grpo_core.types import (
    Abstained,
    AdvantageRequest,
    Failed,
    FailureKind,
    Rollout,
    ScoredRollouts,
)

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_core.metrics import StepMetrics
    from grpo_core.policy import MicroBatch
    from grpo_core.scoring.scorer import Work
    from grpo_core.types import ActionTokens, LossOutput

_OWN_GROUPS = {
    *("advantage", "entropy", "eval", "group", "kl", "length", "loss", "optim", "ratio", "reward"),
    *("sampling", "sync", "tokens"),
}
"""Groups of metrics that no environment may write to; ``time`` is open to all."""


def observe_lengths(
    metrics: StepMetrics, rollouts: Sequence[Rollout], prefix: str = "length"
) -> None:
    """Completion lengths in tokens, of all and of those that ended by themselves."""
    lengths = [float(len(r.token_ids)) for r in rollouts]
    metrics.mean(f"{prefix}/mean", lengths)
    metrics.extremes(prefix, lengths)
    metrics.mean(
        f"{prefix}/finished_mean", [float(len(r.token_ids)) for r in rollouts if not r.truncated]
    )
    metrics.mean(f"{prefix}/truncated_share", [float(r.truncated) for r in rollouts])


def observe_environment(
    metrics: StepMetrics, rollouts: Sequence[Rollout], prefix: str = ""
) -> None:
    """What the environment says of its rollouts, each number a mean over those that have it.

    Raises:
        PluginError: a metric's name is not ``group/name``, or its group is one of the core's.
    """
    names = {name for rollout in rollouts for name in rollout.metrics}
    for name in sorted(names):
        group, slash, _ = name.partition("/")
        if not slash or group in _OWN_GROUPS:
            raise PluginError(
                f"the environment reports the metric {name!r}; it must be called group/name, and "
                f"the groups {', '.join(sorted(_OWN_GROUPS))} are the core's, whose numbers it "
                "would change"
            )
        metrics.mean(prefix + name, [r.metrics[name] for r in rollouts if name in r.metrics])


def observe_sampled(metrics: StepMetrics, rollouts: Sequence[Rollout]) -> None:
    """What was sampled for training: lengths, counts, and the share of softmax(logits / T) that
    truncation left to draw from, over action tokens."""
    observe_lengths(metrics, rollouts)
    observe_environment(metrics, rollouts)
    metrics.sum("tokens/sampled", float(sum(r.action_count for r in rollouts)))
    metrics.sum("tokens/prompt", float(sum(len(r.prompt_ids) for r in rollouts)))
    known = [math.exp(x) for r in rollouts for x in r.kept_logmass or ()]
    metrics.mean("sampling/kept_mass", known)


def observe_rewards(metrics: StepMetrics, scored: ScoredRollouts, work: Sequence[Work]) -> None:
    """Per provider: mean over the rollouts that have a value, what happened to the others, and
    what it took."""
    for name, outcomes, given in zip(
        scored.providers_F, scored.outcomes_F_B, scored.given_F_B(), strict=True
    ):
        values = [v for v in given if v == v]
        metrics.mean(f"reward/{name}/mean", values)
        metrics.mean(f"reward/{name}/square", [v * v for v in values])
        metrics.mean(
            f"reward/{name}/abstained", [float(isinstance(o, Abstained)) for o in outcomes]
        )
        metrics.mean(f"reward/{name}/failed", [float(isinstance(o, Failed)) for o in outcomes])
        for kind in get_args(FailureKind):
            shares = [float(isinstance(o, Failed) and o.kind == kind) for o in outcomes]
            metrics.mean(f"reward/{name}/{kind}", shares)
    metrics.mean("reward/dropped", [float(dropped) for dropped in scored.dropped_B])
    for done in work:
        metrics.sum(f"reward/{done.name}/retries", float(done.retries))
        if done.abandoned is not None:
            metrics.sum(f"reward/{done.name}/abandoned", float(done.abandoned))
        if done.restarts is not None:
            metrics.sum(f"reward/{done.name}/restarts", float(done.restarts))
        metrics.mean(f"time/reward/{done.name}", [call.seconds for call in done.calls])
    observe_logged(metrics, work, "reward")


def observe_logged(metrics: StepMetrics, work: Sequence[Work], prefix: str) -> None:
    """What providers gave to ``log_metric``: means over calls and ranks."""
    for done in work:
        for name, values in done.metrics().items():
            metrics.mean(f"{prefix}/{done.name}/{name}", values)


def observe_totals(metrics: StepMetrics, request: AdvantageRequest, advantages_B: Tensor) -> None:
    """Weighted reward, advantage, and the share of groups whose rewards are all the same.

    Called on the main rank alone, with the rollouts of all ranks.
    """
    rewards_F_B, group_B = request.rewards_F_B, request.group_B
    totals_B = (rewards_F_B * request.weights_F[:, None]).nansum(0)
    totals_B[rewards_F_B.isnan().all(0)] = torch.nan
    present = totals_B[~totals_B.isnan()]
    metrics.mean("reward/mean", present)
    metrics.mean("reward/std", float(present.std()) if len(present) > 1 else present * 0)
    metrics.mean("advantage/mean", advantages_B)
    metrics.mean("advantage/std", float(advantages_B.std()) if len(advantages_B) > 1 else 0.0)
    groups = int(group_B.max()) + 1
    infinity = torch.full((groups,), torch.inf, dtype=torch.float64)
    low = infinity.scatter_reduce(0, group_B, totals_B.nan_to_num(torch.inf), "amin")
    high = (-infinity).scatter_reduce(0, group_B, totals_B.nan_to_num(-torch.inf), "amax")
    metrics.mean("group/no_signal", (high <= low).double())


def observe_tokens(
    metrics: StepMetrics,
    micro: MicroBatch,
    tokens: ActionTokens,
    out: LossOutput,
    ranks: int,
    compared_B: Sequence[bool],
) -> None:
    """Everything that the forward pass of a microbatch tells, on the side.

    Args:
        compared_B: which rollouts were sampled in this step, and not replayed, with log-probs of
            the trainer's distribution; read only in the first minibatch.
    """
    weighted = micro.weighted(out).detach()
    # The weights hold a factor `ranks` for the averaging of gradients; of the optimizer steps of
    # a rollout batch the mean is reported.
    metrics.sum("loss/total", float(weighted) / (ranks * len(micro.minibatch.batch.plan)))
    logprobs_N = tokens.logprobs_N.detach()
    metrics.mean("entropy/mean", tokens.entropy_N)
    if tokens.old_logprobs_N is not None:
        ratio_N = bounded(logprobs_N - tokens.old_logprobs_N).exp()
        metrics.mean("ratio/mean", ratio_N)
        metrics.extremes("ratio", ratio_N)
    if tokens.ref_logprobs_N is not None:
        metrics.mean("kl/reference", kl_k3(logprobs_N, tokens.ref_logprobs_N))
    if micro.minibatch.first:
        # The policy has not moved yet: trainer and sampler should agree on every token.
        sampling_N = tokens.sampling_logprobs_N
        if not all(compared_B):
            compared_N = tokens.spread(torch.tensor(compared_B, device=logprobs_N.device))
            logprobs_N, sampling_N = logprobs_N[compared_N], sampling_N[compared_N]
        observe_mismatch(metrics, logprobs_N, sampling_N)
    for name, values in out.metrics.items():
        metrics.mean(name, values)


def observe_mismatch(metrics: StepMetrics, logprobs_N: Tensor, sampling_N: Tensor) -> None:
    """How far trainer and sampler are apart on the same tokens under the same weights."""
    difference_N = (logprobs_N - sampling_N).abs()
    metrics.mean("ratio/sampler_mismatch", difference_N)
    if len(difference_N):
        metrics.maximum("ratio/sampler_mismatch_max", float(difference_N.max()))
    metrics.mean("ratio/sampler_mismatch_kl", kl_k3(sampling_N, logprobs_N))
