"""A resolved config as text: valid YAML, with what follows from it in comments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from grpo_core.builtin.text import visible
from grpo_core.cli.columns import columns

if TYPE_CHECKING:
    from grpo_core.config import ResolvedConfig


def shown_yaml(resolved: ResolvedConfig) -> str:
    """The config as YAML that a terminal can be trusted with, and that still says the same."""
    text = resolved.yaml()
    return text if visible(text) == text else resolved.yaml(ascii_only=True)


def description(resolved: ResolvedConfig) -> str:
    """Everything that a run would use, and how much of it."""
    counts = [(name, f"{count:,}") for name, count in resolved.derived().items()]
    components = [
        (c.role, c.name, str(c.registration.source), c.registration.target_path)
        for c in resolved.components
    ]
    if not resolved.rewards:
        components.append(("reward", "(those that the task brings)", "", ""))
    lines = ["", "Counts that follow:", *columns(counts), "", "Components:", *columns(components)]
    return shown_yaml(resolved) + _comments(lines)


def probed(choices: Mapping[str, str]) -> str:
    """What was chosen on this machine, to stand below the config."""
    return _comments(["", "Chosen on this machine:", *columns(list(choices.items()))])


def _comments(lines: Sequence[str]) -> str:
    return "\n".join(f"# {line}".rstrip() for line in lines)
