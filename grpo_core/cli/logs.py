"""What the command line shows of what is logged."""

from __future__ import annotations

import logging
import os

OURS = "grpo_"
"""Packages of this name, the core and its plugins, say what they have decided at level INFO."""


def show_logs() -> None:
    """Warnings of everybody, and what the core and its plugins say, as lines on standard error.

    Without this a user would not learn which way weights travel, or what a run waits for while
    servers start: Python shows warnings only. Of several ranks the first one says it.
    """
    root = logging.getLogger()
    if root.handlers:  # somebody else decides, as where the command is called from Python
        return
    handler = logging.StreamHandler()
    handler.addFilter(_shown)
    root.addHandler(handler)
    root.setLevel(logging.INFO)


def _shown(record: logging.LogRecord) -> bool:
    first = os.environ.get("RANK", "0") == "0"
    return record.levelno >= logging.WARNING or (first and record.name.startswith(OURS))
