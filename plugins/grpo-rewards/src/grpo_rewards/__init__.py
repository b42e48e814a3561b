"""Reward providers: answers, form, length, and a language model as judge."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpo_core.lazy import lazy_exports

__getattr__ = lazy_exports(
    __name__,
    {
        "CosineLength": "grpo_rewards.checked_length",
        "CosineLengthConfig": "grpo_rewards.config",
        "Criterion": "grpo_rewards.judge.config",
        "ExactAnswer": "grpo_rewards.exact_answer",
        "ExactAnswerConfig": "grpo_rewards.config",
        "JsonSchema": "grpo_rewards.json_schema",
        "JsonSchemaConfig": "grpo_rewards.config",
        "LLMJudge": "grpo_rewards.judge.reward",
        "LLMJudgeConfig": "grpo_rewards.judge.config",
        "Length": "grpo_rewards.checked_length",
        "LengthConfig": "grpo_rewards.config",
        "MathAccuracy": "grpo_rewards.math_answer",
        "MathAnswerConfig": "grpo_rewards.config",
        "NumberAnswer": "grpo_rewards.number_answer",
        "NumberAnswerConfig": "grpo_rewards.config",
        "ReasoningAccuracy": "grpo_rewards.math_answer",
        "ReasoningAnswerConfig": "grpo_rewards.config",
        "ReasoningSteps": "grpo_rewards.reasoning_steps",
        "ReasoningStepsConfig": "grpo_rewards.config",
        "RegexConfig": "grpo_rewards.config",
        "RegexMatch": "grpo_rewards.regex_match",
        "RepetitionPenalty": "grpo_rewards.repetition_penalty",
        "RepetitionPenaltyConfig": "grpo_rewards.config",
        "SoftOverlong": "grpo_rewards.soft_overlong",
        "SoftOverlongConfig": "grpo_rewards.config",
        "TagCount": "grpo_rewards.tag_count",
        "TagCountConfig": "grpo_rewards.config",
        "ThinkFormat": "grpo_rewards.think_format",
        "ThinkFormatConfig": "grpo_rewards.config",
    },
)

__all__ = [
    "CosineLength",
    "CosineLengthConfig",
    "Criterion",
    "ExactAnswer",
    "ExactAnswerConfig",
    "JsonSchema",
    "JsonSchemaConfig",
    "LLMJudge",
    "LLMJudgeConfig",
    "Length",
    "LengthConfig",
    "MathAccuracy",
    "MathAnswerConfig",
    "NumberAnswer",
    "NumberAnswerConfig",
    "ReasoningAccuracy",
    "ReasoningAnswerConfig",
    "ReasoningSteps",
    "ReasoningStepsConfig",
    "RegexConfig",
    "RegexMatch",
    "RepetitionPenalty",
    "RepetitionPenaltyConfig",
    "SoftOverlong",
    "SoftOverlongConfig",
    "TagCount",
    "TagCountConfig",
    "ThinkFormat",
    "ThinkFormatConfig",
]

if TYPE_CHECKING:
    from grpo_rewards.checked_length import CosineLength, Length
    from grpo_rewards.config import (
        CosineLengthConfig,
        ExactAnswerConfig,
        JsonSchemaConfig,
        LengthConfig,
        MathAnswerConfig,
        NumberAnswerConfig,
        ReasoningAnswerConfig,
        ReasoningStepsConfig,
        RegexConfig,
        RepetitionPenaltyConfig,
        SoftOverlongConfig,
        TagCountConfig,
        ThinkFormatConfig,
    )
    from grpo_rewards.exact_answer import ExactAnswer
    from grpo_rewards.json_schema import JsonSchema
    from grpo_rewards.judge.config import Criterion, LLMJudgeConfig
    from grpo_rewards.judge.reward import LLMJudge
    from grpo_rewards.math_answer import MathAccuracy, ReasoningAccuracy
    from grpo_rewards.number_answer import NumberAnswer
    from grpo_rewards.reasoning_steps import ReasoningSteps
    from grpo_rewards.regex_match import RegexMatch
    from grpo_rewards.repetition_penalty import RepetitionPenalty
    from grpo_rewards.soft_overlong import SoftOverlong
    from grpo_rewards.tag_count import TagCount
    from grpo_rewards.think_format import ThinkFormat
