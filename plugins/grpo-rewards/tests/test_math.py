"""Mathematical answers: what is one, what is equal, and that nothing depends on the thread.

Next to TRL: ``tests/oracle/test_reward_oracle.py``.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from grpo_core.errors import DataError
from grpo_core.protocols import RewardProvider
from grpo_rewards import (
    LengthConfig,
    MathAccuracy,
    MathAnswerConfig,
    ReasoningAccuracy,
    ReasoningAnswerConfig,
)

Score = Callable[..., list[Any]]


@pytest.mark.parametrize(
    ("gold", "text", "expected"),
    [
        (r"\frac{63}{400}", r"\boxed{\frac{63}{400}}", 1.0),
        (r"\frac{63}{400}", r"\boxed{\frac{64}{400}}", 0.0),
        (r"$\frac{1}{2}$", r"The answer is $0.5$.", 1.0),
        ("4", r"\boxed{4}", 1.0),
        ("4", r"first \boxed{3}, no, \boxed{4}", 0.0),  # {3, 4}: two answers
        ("4", "4", 0.0),
        ("4", "The answer is 4.", 0.0),
        ("4", "", 0.0),
        ("$x^2-1$", r"\boxed{(x-1)(x+1)}", 1.0),
        (r"$\{1,2\}$", r"\boxed{\{2,1\}}", 1.0),
        ("10", r"\boxed{10\text{ cm}}", 1.0),
        ("no formula at all", r"\boxed{4}", None),
        (None, r"\boxed{4}", None),
        (4, r"\boxed{4}", 1.0),
    ],
)
def test_math_accuracy(gold: Any, text: str, expected: float | None, score: Score) -> None:
    assert isinstance(MathAccuracy(), RewardProvider)
    assert score(MathAccuracy(), {"answer": gold}, text) == [expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4", 1.0), ("The answer is 4.", 1.0), ("it is 5", 0.0), (r"4, so \boxed{5}", 0.0), ("", 0.0)],
)
def test_plain_numbers_where_asked_for(text: str, expected: float, score: Score) -> None:
    provider = MathAccuracy(MathAnswerConfig(plain=True))
    assert score(provider, {"answer": "4"}, text) == [expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"<think>\boxed{3}</think>\boxed{4}", 1.0),
        (r"<think>\boxed{4}</think>\boxed{3}", 0.0),
        (r"<think>\boxed{4}</think>", 0.0),
        (r"<think>\boxed{4}", 0.0),
        (r"</think>\boxed{3}</think>\boxed{4}", 1.0),
    ],
)
def test_reasoning_accuracy(text: str, expected: float, score: Score) -> None:
    assert score(ReasoningAccuracy(), {"answer": "4"}, text) == [expected]


def test_reasoning_that_does_not_end_is_wrong_whatever_the_data_say(score: Score) -> None:
    assert score(ReasoningAccuracy(), {"answer": "words"}, "x", "</think>x") == [0.0, None]
    other = ReasoningAccuracy(ReasoningAnswerConfig(delimiters=("</r>", "</think>"), column="gold"))
    texts = [r"\boxed{3}</r>\boxed{4}", r"\boxed{3}</think>\boxed{4}", r"</r>\boxed{4}</think>"]
    assert score(other, {"gold": "4"}, *texts) == [1.0, 1.0, 1.0]
    with pytest.raises(DataError, match="answer"):
        score(MathAccuracy(), {"gold": "4"}, "4")


def test_threads_and_signals_make_no_difference(score: Score) -> None:
    texts = [r"\boxed{4}", r"\boxed{5}", "4"]
    before = signal.getsignal(signal.SIGALRM)
    found: list[Any] = []
    provider = MathAccuracy()
    thread = threading.Thread(target=lambda: found.extend(score(provider, {"answer": "4"}, *texts)))
    thread.start()
    thread.join()
    assert found == score(provider, {"answer": "4"}, *texts) == [1.0, 0.0, 0.0]
    assert signal.getsignal(signal.SIGALRM) == before
    assert signal.alarm(0) == 0, "an alarm would go off in the middle of something else"


HANGING = """
from grpo_core.types import Prompt, Rollout, ScoreRequest, Span
from grpo_rewards import MathAccuracy
prompt = Prompt(id="0", content="", columns={"answer": "4"})
span = Span(token_ids=(1,), logprobs=(0.0,), policy_version=0)
rollout = Rollout(prompt=prompt, prompt_ids=(1,), group=0, sample=0, spans=(span,),
                  text=r"\\boxed{9^{9^{9^{9}}}}", finish_reason="stop")
provider = MathAccuracy()
print("begins", flush=True)
provider.score(ScoreRequest(step=0, rollouts_B=(rollout,)))
print("ends", flush=True)
"""


def test_a_formula_that_never_ends_is_killed_with_its_process() -> None:
    """Why a process of its own is the default: only that ends it, and it does."""
    for config in (MathAnswerConfig(), ReasoningAnswerConfig(), LengthConfig()):
        assert config.execution_defaults["isolation"] == "process"
    assert not LengthConfig(check="number").execution_defaults
    with subprocess.Popen(
        [sys.executable, "-c", HANGING], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begins\n"
        time.sleep(2)
        assert process.poll() is None, "this formula no longer hangs; find another"
        process.kill()
        assert process.wait() == -signal.SIGKILL
