"""Options of the rewards."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from grpo_core.settings import Settings

ANSWER_PATTERN = r"<answer>((?:(?!<answer>).)*?)</answer>"
"""What stands between ``</answer>`` and the nearest ``<answer>`` before it. No second opening tag
inside: a search from each of many unclosed tags to the end of a looping completion would take
quadratic time."""

THINK_PATTERN = (
    r"<think>(?:(?!</?(?:think|answer)>).)*+</think>"
    r"\s*"
    r"<answer>(?!\s*</answer>)(?:(?!</?(?:think|answer)>).)*+</answer>"
)
"""Each tag once and in this order, only white space between the two parts, the answer not blank.
Possessive (``*+``), so that it never backtracks."""


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
    return pattern


def _has_one_group(pattern: str) -> str:
    groups = re.compile(_compiles(pattern)).groups
    if groups != 1:
        raise ValueError(
            f"{pattern!r} has {groups} groups; exactly one (...) must mark the answer, "
            "further ones may be written (?:...)"
        )
    return pattern


class ExactAnswerConfig(Settings):
    """How the answer is found and what it is compared with."""

    pattern: Annotated[str, AfterValidator(_has_one_group)] = Field(
        default=ANSWER_PATTERN,
        description="Regular expression with one group, the answer; '.' matches line breaks too. "
        "The last match counts.",
    )
    column: str = Field(default="answer", description="Column of the data with the right answer.")


class ThinkFormatConfig(Settings):
    """What a well-formed completion looks like."""

    pattern: Annotated[str, AfterValidator(_compiles)] = Field(
        default=THINK_PATTERN,
        description="Regular expression that must match the whole completion, surrounding white "
        "space left out; '.' matches line breaks too.",
    )
