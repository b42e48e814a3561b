"""Text from models and data made safe to show: it must not steer a terminal, nor lie."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grpo_core.types import Prompt

JOINERS = "\u200c\u200d"
"""Zero-width (non-)joiners: emoji and several scripts are spelled with them."""


def visible(text: str) -> str:
    r"""Replace what a terminal would obey, or would not show, by its escape: ESC is ``\x1b``.

    Newlines stay, tabs become spaces. Control characters (C0, C1) can retitle or clear a terminal
    and fill its clipboard; bidirectional and other format characters make text read as what it is
    not (CVE-2021-42574); half a surrogate pair cannot be written at all.
    """
    if text.isprintable():
        return text
    return "".join(c if _harmless(c) else _escape(c) for c in text)


def _harmless(char: str) -> bool:
    if char.isprintable() or char == "\n" or char in JOINERS:
        return True
    return unicodedata.category(char) == "Zs"  # no-break and ideographic spaces


def _escape(char: str) -> str:
    return "    " if char == "\t" else char.encode("unicode_escape").decode("ascii")


def shorten(text: str, limit: int) -> str:
    """At most about ``limit`` characters: mostly the beginning, and the end, where answers are."""
    if len(text) <= limit:
        return text
    head, tail = limit * 2 // 3, limit // 3
    left_out = len(text) - head - tail
    return f"{text[:head]} [... {left_out:,} characters ...] {text[-tail:]}"


def prompt_text(prompt: Prompt) -> str:
    """What a person would call the prompt: the text, or the last message of a conversation."""
    if isinstance(prompt.content, str):
        return prompt.content
    content = prompt.content[-1].get("content") if prompt.content else ""
    if isinstance(content, list):
        # Parts of a multimodal message: show the text among them.
        parts = [part.get("text", "") for part in content if isinstance(part, dict)]
        return " ".join(part for part in parts if part)
    return "" if content is None else str(content)
