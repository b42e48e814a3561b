"""Mathematical answers, compared by math-verify."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from grpo_core.errors import ConfigError
from grpo_core.types import Abstained, RewardOutcome, Value
from grpo_rewards.config import MathAnswerConfig, ReasoningAnswerConfig
from grpo_rewards.per_rollout import PerRollout, column_of

if TYPE_CHECKING:
    from grpo_core.protocols import BuildContext
    from grpo_core.types import Rollout


class MathAccuracy(PerRollout):
    r"""1.0 if the completion's LaTeX answer equals the prompt's, by math-verify; else 0.0.

    ``\boxed{...}`` is looked at first, then formulas behind words such as "the answer is". An
    answer without LaTeX (``4``) is none, as in TRL, unless the option ``plain`` is set. Right
    answers in the data may be LaTeX or plain; one that math-verify cannot parse, or ``None``, says
    nothing about a completion: the reward abstains.

    A model can write formulas that sympy works on for hours (``9^{9^{9^9}}``). math-verify's own
    timeout needs the main thread and cannot interrupt C code, so it is switched off; this reward
    belongs in a process that is killed after a timeout (``execution: {isolation: process}``).

    Raises:
        ConfigError: math-verify is not installed.
        DataError: while scoring, where a prompt has no such column.
    """

    Config: type[MathAnswerConfig] = MathAnswerConfig
    name = "math-accuracy"

    def __init__(
        self, config: MathAnswerConfig | None = None, context: BuildContext | None = None
    ) -> None:
        self._config = config = config or self.Config()
        self._column = config.column
        self._verify, self._parse = _math_verify(self.name)
        self._extraction = _extraction(plain=False)
        self._plain = _extraction(plain=True) if config.plain else None

    def __reduce__(self) -> tuple[type[MathAccuracy], tuple[MathAnswerConfig]]:
        # Built anew, so that math-verify is set up in a worker process too.
        return type(self), (self._config,)

    def outcome(self, rollout: Rollout) -> RewardOutcome:
        expected = column_of(rollout.prompt, self._column, self.name)
        gold = None if expected is None else self._parse(str(expected), parsing_timeout=None)
        if not gold:
            return Abstained(reason=f"column {self._column!r} holds {expected!r}: no formula")
        answer = self._answer(rollout.text)
        # Gold first: math-verify is not symmetric, and the other way round a set of every value
        # that the model could think of would be equal to one of them.
        right = self._verify(gold, answer, timeout_seconds=None)
        return Value(value=float(right))

    def _answer(self, text: str) -> list[Any]:
        for extraction in (self._extraction, self._plain):
            if extraction is not None:
                found: list[Any] = self._parse(
                    text,
                    extraction_config=extraction,
                    extraction_mode="first_match",
                    parsing_timeout=None,
                )
                if found:
                    return found
        return []


class ReasoningAccuracy(MathAccuracy):
    """``math-accuracy`` of what stands behind the reasoning; 0.0 if the reasoning does not end.

    The answer is what follows the last ``</think>`` (option ``delimiters``). Without one, whatever
    the reasoning says, there is no answer.
    """

    Config = ReasoningAnswerConfig
    name = "reasoning-accuracy"

    def __init__(
        self, config: ReasoningAnswerConfig | None = None, context: BuildContext | None = None
    ) -> None:
        super().__init__(config, context)
        self._delimiters = (config or ReasoningAnswerConfig()).delimiters

    def outcome(self, rollout: Rollout) -> RewardOutcome:
        if not any(delimiter in rollout.text for delimiter in self._delimiters):
            return Value(value=0.0)
        return super().outcome(rollout)

    def _answer(self, text: str) -> list[Any]:
        delimiter = next(d for d in self._delimiters if d in text)
        return super()._answer(text.rpartition(delimiter)[2])


def _math_verify(who: str) -> tuple[Any, Any]:
    try:
        parser = importlib.import_module("math_verify.parser")
        grader = importlib.import_module("math_verify.grader")
    except ImportError as error:
        raise ConfigError(
            f"reward {who!r} needs math-verify ({error}): pip install 'grpo-rewards[math]'"
        ) from error
    # Each warns once that its timeout is off; whoever kills the process has been told here.
    parser.TIMEOUT_WARNING_SHOWN = grader.TIMEOUT_WARNING_SHOWN = True  # type: ignore[attr-defined]
    return grader.verify, parser.parse


def _extraction(*, plain: bool) -> list[Any]:
    """TRL's extraction of an answer; with ``plain`` that of expressions without LaTeX."""
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import ExprExtractionConfig, LatexExtractionConfig

    if plain:
        return [ExprExtractionConfig()]
    return [
        LatexExtractionConfig(
            normalization_config=NormalizationConfig(units=True),
            boxed_match_priority=0,
            try_extract_without_anchor=False,
        )
    ]
