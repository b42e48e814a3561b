"""The flat action-token batch: all that an advantage or a loss ever sees.

Legend of suffixes: ``_P`` prompts, ``_G`` group members, ``_B`` rollouts, ``_N`` action tokens,
``_F`` reward providers. ``x_N[i]`` describes action token ``i`` itself; nothing is shifted,
nothing is padded, and there is no mask that could leak.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Need = Literal[
    "old_logprobs",
    "ref_logprobs",
    "sampling_logprobs",
    "entropy",
    "entropy_rank",
    "router_balance",
    "values",
]
"""What a loss or an advantage asks the core to compute for it; ``entropy`` asks for its gradient
too, ``values`` for a value head on the policy's hidden states. An advantage may ask for
``ref_logprobs`` and ``values``."""

Aggregation = Literal["token-mean", "sequence-mean", "sequence-sum", "constant"]
"""How per-token losses are averaged over an optimizer step; see ``grpo_core.aggregation``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdvantageRequest:
    """Rewards of one step over all ranks, groups contiguous.

    Example: two prompts with two completions and one provider:
    ``rewards_F_B = [[1.0, 0.0, 1.0, nan]]``, ``group_B = [0, 0, 1, 1]``.
    """

    rewards_F_B: Tensor
    """float64; NaN where a provider abstained or failed. Never infinite."""
    weights_F: Tensor
    """float64, the configured weight of each provider."""
    group_B: Tensor
    """int64, which group each rollout belongs to, counted from 0 without gaps."""
    action_count_B: Tensor
    """int64, action tokens of each rollout."""
    ref_log_ratios: Sequence[Tensor] | None = None
    """Per rollout ``sampling_logprobs - ref_logprobs``, float64 of shape ``(action_count,)``: how
    much likelier each token was to the sampler than to the reference. Present exactly when the
    advantage needs ``ref_logprobs``."""
    values: Sequence[Tensor] | None = None
    """Per rollout what the value head expects of the rewards still to come, before each action
    token, float64 of shape ``(action_count,)``. Present exactly when the advantage needs
    ``values``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdvantageResult:
    """One advantage per rollout, or one per action token; finite, 0 where there is no signal.

    Example: ``AdvantageResult(token_advantages=[torch.tensor([0.1, 0.9]), torch.zeros(3)])`` for
    rollouts of 2 and 3 action tokens.
    """

    advantages_B: Tensor | None = None
    """float64, as many entries as rollouts were asked for."""
    token_advantages: Sequence[Tensor] | None = None
    """In place of ``advantages_B``, for rewards of single steps: one float64 tensor of shape
    ``(action_count,)`` per rollout."""
    value_targets: Sequence[Tensor] | None = None
    """What the value head shall learn, as ``AdvantageRequest.values``; due exactly when the
    advantage needs ``values``."""
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class ActionTokens:
    """The action tokens of one microbatch. Float tensors have the head's dtype (float32).

    Example: rollouts of 3 and 2 action tokens: ``rollout_index_N = [0, 0, 0, 1, 1]``.
    """

    logprobs_N: Tensor
    """Under the current weights; the only one with a gradient. All four kinds of log-probs are
    those of softmax(logits / T), T the sampling temperature, whatever top-p, top-k, min-p or a
    repetition penalty made of it when sampling."""
    old_logprobs_N: Tensor | None
    """At the start of the update; equal to ``logprobs_N`` in value in the first minibatch. Present
    exactly when the loss needs them."""
    sampling_logprobs_N: Tensor
    """As reported by the generator, of the weights that it sampled with."""
    ref_logprobs_N: Tensor | None
    """Under the reference; present exactly when the loss needs it."""
    entropy_N: Tensor
    """Of the policy's distribution at each position, in nats; has a gradient when needed."""
    advantages_N: Tensor
    rollout_index_N: Tensor
    """int64, non-decreasing, ``0 <= rollout_index_N[i] < rollouts``."""
    rollouts: int
    """Rollouts in this microbatch, those without action tokens included."""
    sampler_differs: bool = False
    """The generator's log-probs are the policy's own, but not to rounding (other kernels, another
    precision), so that a correction by ``sampling_logprobs_N`` has something to correct."""
    entropy_rank_N: Tensor | None = None
    """Where the token stands among all action tokens of the step, on all ranks, by the entropy
    that the policy had there before the update: 0 the lowest, 1 the highest. Known before the
    update, so that a threshold on it cannot depend on the split into microbatches. Present exactly
    when the loss needs it."""
    router_balance_N: Tensor | None = None
    """What the token has in the load-balancing loss of a mixture of experts, with gradient; the
    mean over the step's tokens is that loss, which for a perfectly even load is the number of
    experts per token. See ``grpo_core.policy.routing``. Present exactly when the loss needs it."""
    values_N: Tensor | None = None
    """Of the value head, before the token was drawn; has a gradient. This and the next two are
    present exactly when the loss needs ``values``."""
    old_values_N: Tensor | None = None
    """The same at the start of the update."""
    value_targets_N: Tensor | None = None
    """As the advantage has set them."""

    def sum_per_rollout(self, x_N: Tensor) -> Tensor:
        """Sum a per-token tensor over each rollout: ``(N,) -> (rollouts,)``; 0 for empty ones."""
        return x_N.new_zeros(self.rollouts).index_add(0, self.rollout_index_N, x_N)

    def mean_per_rollout(self, x_N: Tensor) -> Tensor:
        """Average a per-token tensor over each rollout: ``(N,) -> (rollouts,)``."""
        count_B = self.sum_per_rollout(x_N.new_ones(x_N.shape))
        # An empty completion has no tokens: 0/0 would put a NaN into every other gradient.
        return self.sum_per_rollout(x_N) / count_B.clamp(min=1)

    def spread(self, x_B: Tensor) -> Tensor:
        """Give every token its rollout's value: ``(rollouts,) -> (N,)``."""
        return x_B[self.rollout_index_N]


@dataclass(frozen=True, kw_only=True, slots=True)
class LossOutput:
    """A loss per action token, to be weighted and summed by the core, not averaged by the loss."""

    loss_N: Tensor
    """Averaged by the loss's ``aggregation``."""
    token_mean_N: Tensor | None = None
    """What is averaged over all tokens of the step whatever the aggregation, and added: an entropy
    bonus, whose coefficient must not change its meaning with the policy term's normaliser."""
    metrics: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """``group/name`` to a detached ``(N,)`` tensor, averaged over all tokens of the step."""
