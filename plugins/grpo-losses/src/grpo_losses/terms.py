"""What can be added to, or multiplied onto, any objective; each written once, all ``(N,)``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpo_core.numerics import bounded, kl_k3

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_core.types import ActionTokens
    from grpo_losses.options import KlEstimator, SamplerCorrection


def kl(estimator: KlEstimator, logprobs_N: Tensor, ref_logprobs_N: Tensor) -> Tensor:
    """KL(policy || reference) from tokens of the policy, in nats
    (http://joschu.net/blog/kl-approx.html)."""
    if estimator == "k3":
        return kl_k3(logprobs_N, ref_logprobs_N)
    log_ratio_N = logprobs_N - ref_logprobs_N
    return log_ratio_N if estimator == "k1" else log_ratio_N.square() / 2


def sampler_weight(tokens: ActionTokens, c: SamplerCorrection, old_logprobs_N: Tensor) -> Tensor:
    """How much likelier the trainer finds what the sampler drew, bounded; detached."""
    log_weight_N = (old_logprobs_N - tokens.sampling_logprobs_N).detach()
    if c.level == "sequence":
        log_weight_N = tokens.spread(tokens.sum_per_rollout(log_weight_N))
    elif c.level == "geometric":
        log_weight_N = tokens.spread(tokens.mean_per_rollout(log_weight_N))
    weight_N = bounded(log_weight_N).exp()
    if c.mode == "truncate":
        return weight_N.clamp(c.low, c.high)
    outside_N = (weight_N < (c.low or 0)) | (weight_N > (c.high or float("inf")))
    return weight_N.masked_fill(outside_N, 0.0)


def on_policy_enough(tokens: ActionTokens, threshold: float) -> Tensor:
    """bool: what DeepSeek-V3.2 (arXiv 2512.02556) trains on. A rollout that the policy has moved
    away from is no evidence against what it would write now; one to encourage is kept."""
    drift_N = tokens.sampling_logprobs_N - tokens.logprobs_N.detach()
    close_N = tokens.spread(tokens.mean_per_rollout(drift_N)) <= threshold
    return close_N | (tokens.advantages_N >= 0)


def router_balance(tokens: ActionTokens) -> Tensor:
    """The load-balancing loss of a mixture of experts (arXiv 2101.03961), as the core gives it.

    Raises:
        ValueError: it is not there.
    """
    if tokens.router_balance_N is None:
        raise ValueError("there is no router balance, which `needs` asks for")
    return tokens.router_balance_N
