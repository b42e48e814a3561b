"""What a cell of the prompt column may hold, and the prompt that it becomes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def content_of(
    value: Any, system_prompt: str | None, *, conversational: bool = False
) -> str | tuple[Mapping[str, Any], ...]:
    """A checked cell as the content of a prompt."""
    if isinstance(value, str):
        if system_prompt is None and not conversational:
            return value
        value = [{"role": "user", "content": value}]
    # Arrow gives every message every key that any message has; chat templates take a key that
    # is there for one that was meant (`tool_calls: null`).
    messages = [
        {k: v for k, v in message.items() if v is not None or k == "content"} for message in value
    ]
    if system_prompt is not None:
        messages.insert(0, {"role": "system", "content": system_prompt})
    return tuple(messages)


def prompt_problem(value: Any, *, system: bool) -> str | None:
    """Why a cell is no prompt, as the end of a sentence; ``None`` when it is one."""
    if value is None:
        return "is missing or null"
    if isinstance(value, str):
        return _text_problem(value)
    if not isinstance(value, list):
        return f"is of type {type(value).__name__}; expected text or a list of messages"
    if not value:
        return "is an empty list of messages"
    for number, message in enumerate(value):
        if not isinstance(message, Mapping):
            return f"has a {type(message).__name__} for message {number}; expected an object"
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or not role:
            return f"has no `role` in message {number}; expected user, system or assistant"
        if content is None and role != "assistant":  # an assistant may call tools and say nothing
            return f"has no `content` in message {number} ({role})"
        if isinstance(content, str) and (problem := _text_problem(content, role != "user")):
            return f"has a message {number} ({role}) whose content {problem}"
    if system and value[0].get("role") == "system":
        return "begins with a system message already; remove it, or the option system_prompt"
    return None


def _text_problem(text: str, may_be_empty: bool = False) -> str | None:
    if not may_be_empty and (not text or text.isspace()):
        return "is empty"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        # Tokenizers and Parquet writers refuse half a surrogate pair, hours later.
        return f"has half a surrogate pair at character {error.start}: it is no valid Unicode text"
    return None


def characters(value: Any) -> int:
    """How long a checked cell is: characters of the text, or of all messages together."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        # A block of content: {"type": "text", "text": "..."}.
        return characters(value.get("text", value.get("content")) or "")
    return sum(characters(part) for part in value or ())
