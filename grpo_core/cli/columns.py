"""Rows of text under each other. Plain on purpose: no markup that a plugin's text could close."""

from __future__ import annotations

from collections.abc import Sequence

from grpo_core.builtin.text import visible


def columns(rows: Sequence[Sequence[str]], indent: str = "  ") -> list[str]:
    """One line per row, every column but the last as wide as its widest cell."""
    clean = [[visible(" ".join(cell.split())) for cell in row] for row in rows]
    if not clean:
        return []
    widths = [max(len(row[i]) for row in clean) for i in range(len(clean[0]))]
    return [
        (indent + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True))).rstrip()
        for row in clean
    ]
