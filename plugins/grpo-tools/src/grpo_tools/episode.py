"""One rollout while it is being made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from grpo_core.types import Rollout, Span, Turn

if TYPE_CHECKING:
    from collections.abc import Callable

    from grpo_core.types import FinishReason, Message, Prompt, SampledTurn
    from grpo_tools.calls import Result
    from grpo_tools.parsing import Said
    from grpo_tools.sessions import Kind, Session


@dataclass(kw_only=True)
class Episode:
    """Tokens, messages and counts of one rollout; no decisions."""

    prompt: Prompt
    key: int
    sample: int
    kind: Kind
    session: Session
    max_tokens: int
    """Tokens of the whole completion, sampled and inserted."""
    prompt_ids: tuple[int, ...] = ()
    spans: list[Span] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    turns: int = 0
    counts: dict[str, float] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    finish_reason: FinishReason | None = None
    error: str | None = None

    @property
    def room(self) -> int:
        """Tokens left."""
        return self.max_tokens - sum(len(span.token_ids) for span in self.spans)

    @property
    def token_ids(self) -> tuple[int, ...]:
        return (*self.prompt_ids, *(t for span in self.spans for t in span.token_ids))

    def next_turn(self) -> Turn:
        return Turn(
            prompt_ids=self.token_ids,
            key=self.key,
            sample=self.sample,
            number=self.turns,
            max_tokens=self.room,
        )

    def sampled(self, turn: SampledTurn) -> None:
        self.turns += 1
        self.spans.extend(turn.completion.spans(turn.policy_version))

    def inserted(self, token_ids: tuple[int, ...]) -> None:
        self.spans.append(Span(token_ids=token_ids, logprobs=None, policy_version=None))

    def called(self, said: Said, results: Sequence[Result], seconds: float) -> None:
        """Keep the count of calls and of what became of them."""
        self.count("tools/calls", len(said.calls))
        self.count("tools/failed", sum(r.failure is not None for r in results))
        self.count("tools/timed_out", sum(r.failure == "timeout" for r in results))
        self.count("time/tools", seconds)

    def count(self, name: str, value: float = 1.0) -> None:
        self.counts[name] = self.counts.get(name, 0.0) + value

    def end(self, reason: FinishReason, error: str | None = None) -> None:
        self.finish_reason, self.error = reason, error

    def rollout(self, decode: Callable[[tuple[int, ...]], str]) -> Rollout:
        """The finished rollout."""
        assert self.finish_reason is not None, f"{self.key}, {self.sample} is not finished"
        names = ("tools/calls", "tools/failed", "tools/timed_out", "tools/turn_limit", "tools/cut")
        counts = dict.fromkeys(names, 0.0) | {"tools/turns": float(self.turns)} | self.counts
        return Rollout(
            prompt=self.prompt,
            prompt_ids=self.prompt_ids,
            group=self.key,
            sample=self.sample,
            spans=tuple(self.spans),
            text="\n".join(decode(span.token_ids) for span in self.spans if span.sampled),
            finish_reason=self.finish_reason,
            error=self.error,
            extra=self.extra,
            messages=tuple(self.messages),
            metrics=counts,
        )
