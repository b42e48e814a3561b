"""Registration; imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpo_core import hookimpl

if TYPE_CHECKING:
    from grpo_core.plugins.registrar import Register


@hookimpl
def grpo_register_rewards(register: Register) -> None:
    register(
        "cosine-length",
        "grpo_rewards.checked_length:CosineLength",
        config="grpo_rewards.config:CosineLengthConfig",
        summary="More for short right answers, less for short wrong ones, on a cosine.",
    )
    register(
        "exact-answer",
        "grpo_rewards.exact_answer:ExactAnswer",
        config="grpo_rewards.config:ExactAnswerConfig",
        summary="1 if the last <answer> equals the prompt's answer column, else 0.",
    )
    register(
        "json-schema",
        "grpo_rewards.json_schema:JsonSchema",
        config="grpo_rewards.config:JsonSchemaConfig",
        summary="1 if the completion is JSON that a JSON Schema accepts, else 0.",
    )
    register(
        "length",
        "grpo_rewards.checked_length:Length",
        config="grpo_rewards.config:LengthConfig",
        summary="Kimi 1.5's length reward: shorter than the group is better, if right.",
    )
    register(
        "llm-judge",
        "grpo_rewards.judge.reward:LLMJudge",
        config="grpo_rewards.judge.config:LLMJudgeConfig",
        summary="0 to 1 by a language model behind an OpenAI-compatible endpoint.",
    )
    register(
        "math-accuracy",
        "grpo_rewards.math_answer:MathAccuracy",
        config="grpo_rewards.config:MathAnswerConfig",
        summary="1 if the LaTeX answer equals the prompt's by math-verify, else 0.",
    )
    register(
        "number-answer",
        "grpo_rewards.number_answer:NumberAnswer",
        config="grpo_rewards.config:NumberAnswerConfig",
        summary="1 if the last number equals the prompt's number, else 0.",
    )
    register(
        "reasoning-accuracy",
        "grpo_rewards.math_answer:ReasoningAccuracy",
        config="grpo_rewards.config:ReasoningAnswerConfig",
        summary="math-accuracy of what stands behind </think>; 0 without it.",
    )
    register(
        "reasoning-steps",
        "grpo_rewards.reasoning_steps:ReasoningSteps",
        config="grpo_rewards.config:ReasoningStepsConfig",
        summary="Up to 1 for marks of steps: numbered lines, bullets, First, Next.",
    )
    register(
        "regex",
        "grpo_rewards.regex_match:RegexMatch",
        config="grpo_rewards.config:RegexConfig",
        summary="1 if a regular expression is found in the completion, else 0.",
    )
    register(
        "repetition-penalty",
        "grpo_rewards.repetition_penalty:RepetitionPenalty",
        config="grpo_rewards.config:RepetitionPenaltyConfig",
        summary="Down to -1 for n-grams of tokens that repeat.",
    )
    register(
        "soft-overlong",
        "grpo_rewards.soft_overlong:SoftOverlong",
        config="grpo_rewards.config:SoftOverlongConfig",
        summary="DAPO's punishment: 0 down to -1 as the length nears its bound.",
    )
    register(
        "tag-count",
        "grpo_rewards.tag_count:TagCount",
        config="grpo_rewards.config:TagCountConfig",
        summary="The share of the tags that stand exactly once.",
    )
    register(
        "think-format",
        "grpo_rewards.think_format:ThinkFormat",
        config="grpo_rewards.config:ThinkFormatConfig",
        summary="1 if the completion is <think>...</think><answer>...</answer>, else 0.",
    )
