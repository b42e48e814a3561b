"""Options of the rewards."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from grpo_core.settings import Settings

ANSWER_PATTERN = r"<answer>((?:(?!<answer>).)*?)</answer>"
"""What stands between ``</answer>`` and the nearest ``<answer>`` before it. No second opening tag
inside: a search from each of many unclosed tags to the end of a looping completion would take
quadratic time."""

THINK_PATTERN = (
    r"<think>(?:(?!</?(?:think|answer)>).)*</think>"
    r"\s*"
    r"<answer>(?!\s*</answer>)(?:(?!</?(?:think|answer)>).)*</answer>"
)
"""Each tag once and in this order, only white space between the two parts, the answer not blank.
Each repetition ends at the first tag, so that no other end can match and time stays linear.
Possessive repetitions would say the same, and match nothing at all on Python 3.11.0 to 3.11.4
(CPython issue 106052)."""

Form = Literal["think-answer", "think", "think-answer-lines"]

FORMS: dict[Form, str] = {
    "think-answer": THINK_PATTERN,
    # TRL's think_format_reward: from the first character on; anything may follow.
    "think": r"<think>(?!.*<think>).*?</think>.*",
    # open-r1's format. The first </think>...<answer> leaves the most text for the rest.
    "think-answer-lines": (
        r"<think>\n(?:(?!\n</think>\n<answer>\n).)*\n</think>\n<answer>\n"
        r"(?:(?!\n</answer>).)*\n</answer>\s*"
    ),
}
"""Must match the whole completion; ``.`` matches line breaks."""

TAGS = ("<think>\n", "\n</think>\n", "\n<answer>\n", "\n</answer>")
"""open-r1's."""

STEPS = r"Step \d+:|^\d+\.|\n[-*]|First,|Second,|Next,|Finally,"


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


Pattern = Annotated[str, AfterValidator(_compiles)]
AnswerPattern = Annotated[str, AfterValidator(_has_one_group)]


class AnswerColumn(Settings):
    """Where the right answer stands in the data."""

    column: str = Field(default="answer", description="Column of the data with the right answer.")


class ExactAnswerConfig(AnswerColumn):
    """How the answer is found and what it is compared with."""

    pattern: AnswerPattern = Field(
        default=ANSWER_PATTERN,
        description="Regular expression with one group, the answer; '.' matches line breaks too. "
        "The last match counts.",
    )


class NumberAnswerConfig(AnswerColumn):
    """Where the number stands, and what counts as the same."""

    pattern: AnswerPattern | None = Field(
        default=None,
        description="Regular expression with one group, in whose last match the number is looked "
        "for; null is the whole completion.",
    )
    rel_tol: float = Field(default=0.0, ge=0, lt=1, description="Relative distance that is right.")
    abs_tol: float = Field(default=0.0, ge=0, description="Absolute distance that is right.")


OWN_PROCESS: Mapping[str, Any] = {"isolation": "process", "timeout": 60.0}
"""For what may hang in code that nothing else can interrupt. A group takes well under a second."""


class MathAnswerConfig(AnswerColumn):
    """What math-verify accepts as an answer."""

    execution_defaults: ClassVar[Mapping[str, Any]] = OWN_PROCESS
    """Of the block's ``execution``, where the config does not set it."""

    plain: bool = Field(
        default=False,
        description="Also take numbers and expressions without LaTeX ('The answer is 4.') where "
        "the completion has no LaTeX answer; TRL and open-r1 count them as wrong.",
    )


class ReasoningAnswerConfig(MathAnswerConfig):
    """Where the reasoning ends."""

    delimiters: tuple[str, ...] = Field(
        default=("</think>",),
        min_length=1,
        description="The answer stands after the last occurrence of the first of these that "
        "occurs at all.",
    )


class CheckedAnswerConfig(AnswerColumn):
    """How a length reward finds out which completions are right."""

    check: Literal["math", "number", "exact"] = Field(
        default="math",
        description="As math-accuracy, number-answer or exact-answer with their own defaults.",
    )

    @property
    def execution_defaults(self) -> Mapping[str, Any]:
        """Of the block's ``execution``, where the config does not set it."""
        return OWN_PROCESS if self.check == "math" else {}


class CosineLengthConfig(CheckedAnswerConfig):
    """Rewards at both ends of the length (defaults as in arXiv 2502.03373 by TRL)."""

    max_tokens: int = Field(
        ge=1, description="Length at which the schedule ends, usually sampling.max_tokens."
    )
    correct_short: float = Field(default=1.0, description="Right, with 0 tokens.")
    correct_long: float = Field(default=0.5, description="Right, with max_tokens or more.")
    wrong_short: float = Field(default=-1.0, description="Wrong, with 0 tokens.")
    wrong_long: float = Field(default=-0.5, description="Wrong, with max_tokens or more.")


class LengthConfig(CheckedAnswerConfig):
    """How right completions are told from wrong ones."""


class ThinkFormatConfig(Settings):
    """What a well-formed completion looks like."""

    form: Form = Field(
        default="think-answer",
        description="think-answer: both parts, each tag once; think: TRL's think_format_reward, "
        "reasoning in tags and then anything; think-answer-lines: open-r1's format, each tag on "
        "its own line.",
    )
    pattern: Pattern | None = Field(
        default=None,
        description="Regular expression in place of a form; it must match the whole completion, "
        "surrounding white space left out; '.' matches line breaks too.",
    )


class RegexConfig(Settings):
    """What is looked for."""

    pattern: Pattern = Field(description="Regular expression; '.' matches line breaks too.")
    whole: bool = Field(
        default=False, description="It must match the whole completion, not occur in it."
    )
    ignore_case: bool = Field(default=False, description="A and a are the same.")


class TagCountConfig(Settings):
    """Which tags are counted."""

    tags: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=TAGS, min_length=1, description="Texts that should each stand exactly once."
    )


class ReasoningStepsConfig(Settings):
    """What a step looks like, and how many are enough."""

    pattern: Pattern = Field(
        default=STEPS, description="Regular expression of a step's mark; '^' starts a line."
    )
    enough: int = Field(default=3, ge=1, description="Marks for the full reward (open-r1's 3).")


class SoftOverlongConfig(Settings):
    """Where the punishment begins and where it is full."""

    max_tokens: int = Field(
        ge=1, description="Length with the full punishment, usually sampling.max_tokens."
    )
    soft_tokens: int = Field(
        ge=0, description="Tokens before max_tokens at which it begins (DAPO: 1/5 of max_tokens)."
    )

    @model_validator(mode="after")
    def _begins_at_a_length(self) -> SoftOverlongConfig:
        if self.soft_tokens > self.max_tokens:
            raise ValueError(
                f"soft_tokens {self.soft_tokens} is more than max_tokens {self.max_tokens}: even "
                "an empty completion would be punished"
            )
        return self


class RepetitionPenaltyConfig(Settings):
    """What a repetition is, and what it costs."""

    ngram_size: int = Field(default=3, ge=1, description="Tokens in a row that are compared (TRL).")
    max_penalty: float = Field(default=-1.0, le=0, description="For nothing but repetition (TRL).")


class JsonSchemaConfig(Settings):
    """Which JSON is valid, and where it stands."""

    schema_path: str | None = Field(default=None, description="A file with the JSON Schema.")
    schema_value: dict[str, Any] | None = Field(
        default=None, description="The JSON Schema itself, written in the config."
    )
    schema_column: str | None = Field(
        default=None, description="Column of the data with each prompt's own JSON Schema."
    )
    where: Literal["whole", "fenced"] = Field(
        default="whole",
        description="whole: the completion is the JSON; fenced: it is the last ```json block.",
    )
    after: str | None = Field(
        default=None,
        min_length=1,
        description="Look only behind the last occurrence of this, </think> say; without it in "
        "the completion the reward is 0.",
    )

    @model_validator(mode="after")
    def _one_schema(self) -> JsonSchemaConfig:
        given = [
            name
            for name in ("schema_path", "schema_value", "schema_column")
            if getattr(self, name) is not None
        ]
        if len(given) != 1:
            raise ValueError(
                "give exactly one of schema_path, schema_value and schema_column, not "
                f"{' and '.join(given) or 'none'}"
            )
        return self
