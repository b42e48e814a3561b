"""Reward providers that need nothing but text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpo_core.lazy import lazy_exports

__getattr__ = lazy_exports(
    __name__,
    {
        "ExactAnswer": "grpo_rewards.exact_answer",
        "ExactAnswerConfig": "grpo_rewards.config",
        "ThinkFormat": "grpo_rewards.think_format",
        "ThinkFormatConfig": "grpo_rewards.config",
    },
)

__all__ = ["ExactAnswer", "ExactAnswerConfig", "ThinkFormat", "ThinkFormatConfig"]

if TYPE_CHECKING:
    from grpo_rewards.config import ExactAnswerConfig, ThinkFormatConfig
    from grpo_rewards.exact_answer import ExactAnswer
    from grpo_rewards.think_format import ThinkFormat
