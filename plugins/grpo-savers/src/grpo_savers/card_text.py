"""Values from configs and data as text in a published Markdown file."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from grpo_core import secrets

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


def code(value: object) -> str:
    """A value as inline code, where neither Markdown nor HTML in it means anything.

    The fence is longer than any run of backticks inside; line breaks and pipes would end a
    table's row or cell.
    """
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    text = "".join(c if c.isprintable() else " " for c in text).replace("|", "\\|")
    if not text.strip():
        return ""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}" if len(fence) > 1 else f"`{text}`"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table of cells that are escaped already."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def without_secrets(value: Any) -> Any:
    """Plain data without what looks like a credential, and without this machine's folders: cards
    are published."""
    return secrets.without_secrets(value, local_name)


def is_hub_id(path: str) -> bool:
    """Whether this names something on the Hugging Face Hub rather than on this machine."""
    return HUB_ID.fullmatch(path) is not None and not os.path.exists(path)


def local_name(path: str) -> str:
    """The last part of a path on this machine: the rest is nobody's business but the author's."""
    # Not Path.exists, which raises for text that is too long to be a path.
    return Path(path).name if os.path.isabs(path) and os.path.exists(path) else path
