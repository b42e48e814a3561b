"""A rollout: one completion with all that is known of it. Token ids are the source of truth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from grpo_core.types.prompts import Message, Prompt

FinishReason = Literal["stop", "length", "error"]
"""``stop``: an end-of-sequence id or a stop string; ``length``: cut off (truncated);
``error``: the environment gave up, see ``Rollout.error``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """Consecutive tokens of one origin: sampled by the policy, or inserted by an environment.

    Example: ``Span(token_ids=(31, 7, 2), logprobs=(-0.1, -2.3, -0.0), policy_version=12)``.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None
    """``Completion.logprobs``, one per token, in nats; ``None`` for inserted text."""
    policy_version: int | None
    """Optimizer steps behind the weights that sampled this span; ``None`` for inserted text."""
    kept_logmass: tuple[float, ...] | None = None
    """``Completion.kept_logmass``, one per token."""

    def __post_init__(self) -> None:
        # A log-prob list that is one short shifts every later token's ratio without a trace.
        if self.logprobs is not None and len(self.logprobs) != len(self.token_ids):
            raise ValueError(
                f"a sampled span has {len(self.token_ids)} token ids but "
                f"{len(self.logprobs)} log-probs; a generator must report one per sampled token"
            )
        if self.kept_logmass is not None and len(self.kept_logmass) != len(self.token_ids):
            raise ValueError(
                f"a sampled span has {len(self.token_ids)} token ids but {len(self.kept_logmass)} "
                "values of kept_logmass; a generator must report one per sampled token, or None"
            )

    @property
    def sampled(self) -> bool:
        return self.logprobs is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """One completion of one prompt.

    Example: ``Rollout(prompt=p, prompt_ids=(1, 5), group=0, sample=3, spans=(span,),
    text="<answer>5</answer>", finish_reason="stop")``.
    """

    prompt: Prompt
    prompt_ids: tuple[int, ...]
    """The prompt as the model saw it, chat template applied; never empty."""
    group: int
    """Position of the prompt among the prompts of this step, over all ranks; those that dynamic
    sampling adds are counted on, ``round * prompts_per_step + place``."""
    sample: int
    """Position within the group, ``0 <= sample < group_size``."""
    spans: tuple[Span, ...]
    text: str
    """A view of what the policy said, for rewards and people: the sampled spans, special tokens
    left out. Without inserted text, since a tool's words must not earn the policy a reward."""
    finish_reason: FinishReason
    error: str | None = None
    """Why the environment gave up; set exactly when ``finish_reason == "error"``."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What the environment wants rewards to see (final state, tool calls)."""
    messages: tuple[Message, ...] = ()
    """The completion as a conversation, where it is more than one assistant message: assistant
    messages with their ``tool_calls``, what tools returned, what the user said."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Numbers about this rollout under ``group/name``. A step reports the mean over the rollouts
    that have one: ``{"tools/calls": 2.0}`` becomes the calls per rollout."""

    @property
    def token_ids(self) -> tuple[int, ...]:
        """All completion tokens, sampled and inserted, in order."""
        return tuple(t for span in self.spans for t in span.token_ids)

    @property
    def action_positions(self) -> tuple[int, ...]:
        """Indices into ``token_ids`` of the tokens that the policy sampled."""
        positions: list[int] = []
        start = 0
        for span in self.spans:
            end = start + len(span.token_ids)
            if span.sampled:
                positions.extend(range(start, end))
            start = end
        return tuple(positions)

    @property
    def action_count(self) -> int:
        """Number of action tokens, ``len(action_positions)``."""
        return sum(len(span.token_ids) for span in self.spans if span.sampled)

    @property
    def sampling_logprobs(self) -> tuple[float, ...]:
        """``Completion.logprobs`` of the action tokens, ``action_count`` values in nats."""
        return tuple(x for span in self.spans for x in span.logprobs or ())

    @property
    def kept_logmass(self) -> tuple[float, ...] | None:
        """``Completion.kept_logmass`` of the action tokens, ``action_count`` values; ``None``
        unless every sampled span has it."""
        known = [span.kept_logmass for span in self.spans if span.sampled]
        if not known or any(part is None for part in known):
            return None
        return tuple(x for part in known for x in part or ())

    @property
    def policy_version(self) -> int | None:
        """The oldest version that any sampled span came from; ``None`` without such a span."""
        versions = [s.policy_version for s in self.spans if s.policy_version is not None]
        return min(versions, default=None)

    @property
    def truncated(self) -> bool:
        return self.finish_reason == "length"

    @property
    def completion(self) -> str | list[dict[str, Any]]:
        """The completion in the prompt's own form: a string, or a list of messages, one from the
        assistant unless the environment knows of more."""
        if self.prompt.conversational:
            if self.messages:
                return [dict(message) for message in self.messages]
            return [{"role": "assistant", "content": self.text}]
        return self.text
