"""The reward of a right number, however it is written."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import TYPE_CHECKING

from grpo_core.errors import DataError
from grpo_core.types import Abstained, RewardOutcome, Value
from grpo_rewards.config import NumberAnswerConfig
from grpo_rewards.per_rollout import PerRollout, column_of

if TYPE_CHECKING:
    from grpo_core.protocols import BuildContext
    from grpo_core.types import Rollout

# A sign counts as one only where no number or word ends: in 10-3 the last number is 3.
NUMBER = re.compile(
    r"(?:(?<![\w.)])[-+\N{MINUS SIGN}])?"
    # At most 20 groups of three: each start of an endless 111,111,... would read it to its end.
    r"(?:(?:\d{1,3}(?:,\d{3}){1,20}+(?!\d)|\d++)(?:\.\d++)?|(?<![\d.])\.\d++)"
    r"(?:[eE][-+]?\d++)?"
    r"(?:/\d++(?![\d.]))?"
)
MOST_CHARACTERS = 400
"""Of a number. ``1e999999999`` as an exact fraction would fill the memory; 1e308 is the largest
float, so that nothing which anybody writes is longer."""


class NumberAnswer(PerRollout):
    """1.0 if the last number of the completion equals the prompt's number, else 0.0.

    Numbers are exact: ``0.50``, ``.5``, ``1/2`` and ``5e-1`` are one number; ``1,234.5`` has a
    thousands separator, ``1,2`` is two numbers. Currency and percent signs around a number are not
    looked at, so ``50%`` is 50. The options ``rel_tol`` and ``abs_tol`` accept what is near;
    ``pattern`` says where the answer stands. No number is a wrong answer; a ``None`` in the data
    abstains.

    Raises:
        DataError: while scoring, where a prompt has no such column or no number in it.
    """

    Config = NumberAnswerConfig
    name = "number-answer"

    def __init__(
        self, config: NumberAnswerConfig | None = None, context: BuildContext | None = None
    ) -> None:
        config = config or NumberAnswerConfig()
        self._column = config.column
        self._pattern = re.compile(config.pattern, re.DOTALL) if config.pattern else None
        self._rel_tol, self._abs_tol = Fraction(config.rel_tol), Fraction(config.abs_tol)

    def outcome(self, rollout: Rollout) -> RewardOutcome:
        expected = column_of(rollout.prompt, self._column, self.name)
        if expected is None:
            return Abstained(reason=f"column {self._column!r} is null")
        wanted = last_number(str(expected))
        if wanted is None:
            raise DataError(
                f"{self.name}: column {self._column!r} of prompt {rollout.prompt.id!r} holds "
                f"{expected!r}, which has no number"
            )
        found = self.extract(rollout.text)
        return Value(value=float(found is not None and self._equal(found, wanted)))

    def extract(self, text: str) -> Fraction | None:
        """The number that a completion gives; ``None`` when it gives none."""
        if self._pattern is not None:
            matches = self._pattern.findall(text)
            text = matches[-1] if matches else ""
        return last_number(text)

    def _equal(self, found: Fraction, wanted: Fraction) -> bool:
        # As math.isclose, but exact: a number beyond the largest float is a number too.
        near = max(self._rel_tol * max(abs(found), abs(wanted)), self._abs_tol)
        return abs(found - wanted) <= near


def last_number(text: str) -> Fraction | None:
    """The last number in a text, exactly."""
    numbers = NUMBER.findall(text)
    return _value(numbers[-1]) if numbers else None


def _value(text: str) -> Fraction | None:
    plain = text.replace(",", "").replace("\N{MINUS SIGN}", "-")
    above, _, below = plain.partition("/")
    mantissa, _, exponent = above.lower().partition("e")
    longest = max(len(mantissa), len(below))
    if longest > MOST_CHARACTERS or (exponent and abs(_short(exponent)) > MOST_CHARACTERS):
        return None
    denominator = int(below) if below else 1
    return Fraction(above) / denominator if denominator else None


def _short(exponent: str) -> int:
    return int(exponent) if len(exponent) < 6 else MOST_CHARACTERS + 1
