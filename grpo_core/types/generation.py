"""What crosses the boundary between an environment and a generator, and into a generator."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from grpo_core.types.rollouts import Span

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from grpo_core.settings import SamplingParams
    from grpo_core.types.policy import Encoder
    from grpo_core.types.prompts import Prompt


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateRequest:
    """Complete each of ``prompt_ids_P``, ``group_size`` times.

    Example: ``GenerateRequest(step=4, seed=0, prompt_ids_P=((1, 5), (1, 9, 2)),
    prompt_keys_P=(0, 1), group_size=8, sampling=SamplingParams(), eos_token_ids=(2,))``.
    """

    step: int
    """The run's step, or -1 - n for evaluation; part of the key of every random number."""
    seed: int
    prompt_ids_P: tuple[tuple[int, ...], ...]
    prompt_keys_P: tuple[int, ...]
    """Each prompt's position over all ranks, so that its completions do not depend on which
    rank or batch it was sampled in."""
    group_size: int
    sampling: SamplingParams
    eos_token_ids: tuple[int, ...]
    """Every id that ends a completion (the policy's generation config and tokenizer)."""
    inputs_P: tuple[Mapping[str, Any], ...] = ()
    """Further model inputs per prompt; empty for text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """One completion as sampled, its end-of-sequence token included.

    Example: ``Completion(token_ids=(31, 7, 2), logprobs=(-0.1, -2.3, -0.0),
    finish_reason="stop")``.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Log-prob of each token under the policy's own distribution, softmax(logits / T), in nats: of
    all tokens, before repetition penalty, top-p, top-k and min-p. It is what the trainer computes.
    At temperature 0 that of softmax(logits)."""
    finish_reason: Literal["stop", "length"]
    kept_logmass: tuple[float, ...] | None = None
    """For each token, the log of the share of softmax(logits / T) that truncation (top-p, top-k,
    min-p) left to draw from; at most 0. Without a repetition penalty the token was drawn with
    log-prob ``logprobs - kept_logmass``. ``None``: nothing was cut off, or it is not known."""
    policy_versions: tuple[int, ...] | None = None
    """For each token, the version of the weights that sampled it, where they changed on the way;
    ``None``: one version sampled them all, which whoever hands the completion over names."""

    def spans(self, policy_version: int) -> tuple[Span, ...]:
        """As a rollout's spans: one per version; one, perhaps empty, without versions of its own.

        Raises:
            ValueError: one of the tuples is not as long as ``token_ids``.
        """
        versions = self.policy_versions
        if not versions:
            versions = (policy_version,) * len(self.token_ids)
        ends = [i for i in range(1, len(versions)) if versions[i] != versions[i - 1]]
        bounds = [0, *ends, len(self.token_ids)]
        for values in (self.logprobs, self.kept_logmass, versions):
            # Cut by the same bounds, a longer one would lose its end without a trace.
            if values is not None and len(values) != len(self.token_ids):
                raise ValueError(f"{len(self.token_ids)} token ids, but {len(values)} values")
        kept = self.kept_logmass
        return tuple(
            Span(
                token_ids=self.token_ids[start:end],
                logprobs=self.logprobs[start:end],
                kept_logmass=None if kept is None else kept[start:end],
                policy_version=versions[start] if start < end else policy_version,
            )
            for start, end in pairwise(bounds)
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class GeneratedGroup:
    """All completions of one prompt of a request."""

    index: int
    """Position of the prompt in ``GenerateRequest.prompt_ids_P``."""
    completions_G: tuple[Completion, ...]
    policy_version: int
    """The version that the generator held while sampling; see ``Completion.policy_versions``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutRequest:
    """The prompts of one step (or evaluation) on this rank, to be turned into rollouts."""

    prompts_P: tuple[Prompt, ...]
    generate: GenerateRequest
    """The same prompts as token ids, with sampling settings and random keys."""
    decode: Callable[[tuple[int, ...]], str]
    """Token ids to text without special tokens, by the policy's own tokenizer."""
    encoder: Encoder | None = None
    """How the policy's tokenizer and chat template render what an environment adds."""
    context_length: int | None = None
    """Most tokens of prompt and completion together; ``None``: the model names no bound."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightUpdate:
    """The policy's weights on their way to a generator.

    In-process generators keep ``model``; remote ones read ``named_tensors``.
    """

    policy_version: int
    model: nn.Module
    """The unwrapped policy, for generators in the same process; its weights change in place."""
    tokenizer: PreTrainedTokenizerBase
    named_tensors: Callable[[], Iterator[tuple[str, torch.Tensor]]] = field(repr=False)
    """Yields (parameter name, full tensor); adapters are merged into what they adapt."""
