"""What a task hands out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Message = Mapping[str, Any]
"""One turn of a conversation: ``{"role": "user", "content": "2 +3 mod 10=?"}``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """One prompt of a task, before it is rendered to tokens.

    Example: ``Prompt(id="train/17", content="2 +3 mod 10=?", columns={"answer": "5"})``.
    """

    id: str
    """Unique within the task and stable between runs: ``"train/17"``."""
    content: str | tuple[Message, ...]
    """Plain text, or the messages that the tokenizer's chat template renders."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Everything else that rewards and environments may need: ``{"answer": "5"}``."""
    inputs: Mapping[str, Any] = field(default_factory=dict)
    """Further model inputs as named tensors (``{"pixel_values": ...}``); empty for text."""
    source: str | None = None
    """Which part of a mixture it comes from; metrics are then also kept by source."""

    @property
    def conversational(self) -> bool:
        """Whether the prompt is messages, so that completions are shown as messages too."""
        return not isinstance(self.content, str)


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptShare:
    """Consecutive prompts of a sequence that are drawn with a weight of their own.

    Example: ``PromptShare(count=7473, weight=2.0)``.
    """

    count: int
    """How many prompts; at least 1."""
    weight: float
    """Draws go to the parts of a sequence in proportion to their weights; above 0."""
