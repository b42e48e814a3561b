"""The program in a completion."""

from __future__ import annotations

import re
from collections.abc import Collection

FENCE = re.compile(r" {0,3}(`{3,}|~{3,})\s*([^\s`]*)[^`]*")


def last_block(text: str, languages: Collection[str]) -> str | None:
    """The last closed fenced block of one of these languages; ``None`` without one.

    A fence is closed by a line of the same character, at least as long and with nothing else
    (CommonMark); a block that the end of the completion cuts off does not count. The language
    ``""`` accepts blocks that name none. Linear in the text.
    """
    found = None
    opened: tuple[str, str] | None = None
    lines: list[str] = []
    for line in text.splitlines(keepends=True):
        bare = line.rstrip()
        if opened is None:
            match = FENCE.fullmatch(bare)
            if match:
                opened, lines = (match[1], match[2].lower()), []
        elif _closes(bare, opened[0]):
            if opened[1] in languages:
                found = "".join(lines)
            opened = None
        else:
            lines.append(line)
    return found


def _closes(line: str, fence: str) -> bool:
    mark = line.lstrip(" ")
    return len(line) - len(mark) <= 3 and len(mark) >= len(fence) and set(mark) == {fence[0]}
