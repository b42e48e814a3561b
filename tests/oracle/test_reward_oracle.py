"""Built-in rewards against TRL's own, on its tests' cases and on random ones."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import trl.rewards

import grpo_rewards
from grpo_core.types import Abstained, Prompt, Rollout, ScoreRequest, Span, Value

pytestmark = pytest.mark.oracle

ANSWERS = [
    *(r"\boxed{\frac{63}{400}}", r"\boxed{\frac{64}{400}}", r"\boxed{0.1575}", "63/400", "4"),
    *(r"The answer is $4$.", r"\boxed{4}", r"4, \boxed{4} \boxed{5}", r"$x=4$", r"\[4\]", ""),
    *(r"\boxed{x^2-1}", r"\boxed{(x-1)(x+1)}", r"\boxed{10\text{ cm}}", r"\boxed{", r"\boxed{}"),
    *(r"\boxed{\{1,2\}}", r"final answer is $\{2, 1\}$. I hope it is correct.", r"\boxed{50\%}"),
]
SOLUTIONS = [
    *(r"\frac{63}{400}", "4", "$x^2-1$", "10", r"$\{1,2\}$", "50", "no formula", "", "$x=4$"),
    r"\boxed{4}",
]


def rollout(text: str = "", answer: Any = None, tokens: Sequence[int] = ()) -> Rollout:
    span = Span(token_ids=tuple(tokens), logprobs=(-1.0,) * len(tokens), policy_version=0)
    return Rollout(
        prompt=Prompt(id="0", content="?", columns={"answer": answer}),
        prompt_ids=(1,),
        group=0,
        sample=0,
        spans=(span,),
        text=text,
        finish_reason="stop",
    )


def ours(provider: Any, rollouts: Sequence[Rollout]) -> list[float | None]:
    outcomes = provider.score(ScoreRequest(step=0, rollouts_B=tuple(rollouts)))
    assert all(isinstance(o, (Value, Abstained)) for o in outcomes)
    return [o.value if isinstance(o, Value) else None for o in outcomes]


def messages(texts: Sequence[str]) -> list[list[dict[str, str]]]:
    return [[{"role": "assistant", "content": text}] for text in texts]


PAIRS = [(text, solution) for text in ANSWERS for solution in SOLUTIONS]


def test_math_accuracy() -> None:
    texts, solutions = zip(*PAIRS, strict=True)
    expected = trl.rewards.accuracy_reward(messages(texts), list(solutions))
    assert {0.0, 1.0, None} == set(expected)
    assert ours(grpo_rewards.MathAccuracy(), [rollout(t, s) for t, s in PAIRS]) == expected


@pytest.mark.parametrize("delimiters", [None, ["</r>", "</think>"]])
def test_reasoning_accuracy(delimiters: list[str] | None) -> None:
    forms = ["{}", r"\boxed{{4}}</think>{}", "<think>{}</think>", r"{}</r>\boxed{{4}}</think>"]
    pairs = [(form.format(text), s) for form in forms for text in ANSWERS[:8] for s in SOLUTIONS]
    texts, solutions = zip(*pairs, strict=True)
    expected = trl.rewards.reasoning_accuracy_reward(
        messages(texts), list(solutions), reasoning_delimiters=delimiters
    )
    assert {0.0, 1.0, None} == set(expected)
    options = {} if delimiters is None else {"delimiters": tuple(delimiters)}
    provider = grpo_rewards.ReasoningAccuracy(grpo_rewards.ReasoningAnswerConfig(**options))
    assert ours(provider, [rollout(t, s) for t, s in pairs]) == expected


def test_think_format() -> None:
    rng = random.Random(0)
    pieces = ["<think>", "</think>", "<answer>", "\n", " ", "x"]
    texts = ["".join(rng.choices(pieces, k=rng.randrange(8))) for _ in range(400)]
    texts += [f"<think>{text}" for text in texts]
    expected = trl.rewards.think_format_reward(messages(texts))
    assert {0.0, 1.0} == set(expected)
    provider = grpo_rewards.ThinkFormat(grpo_rewards.ThinkFormatConfig(form="think"))
    assert ours(provider, [rollout(text) for text in texts]) == expected


@pytest.mark.parametrize(("longest", "soft"), [(100, 20), (100, 100), (50, 0), (1280, 256)])
def test_soft_overlong(longest: int, soft: int) -> None:
    ids = [[1] * n for n in range(longest + 20)]
    expected = trl.rewards.get_soft_overlong_punishment(longest, soft)(completion_ids=ids)
    config = grpo_rewards.SoftOverlongConfig(max_tokens=longest, soft_tokens=soft)
    found = ours(grpo_rewards.SoftOverlong(config), [rollout(tokens=t) for t in ids])
    assert found == expected


@pytest.mark.parametrize("bounds", [(-1.0, -0.5, 0.5, 1.0), (-3.0, 0.0, 0.25, 2.0)])
def test_cosine_length(bounds: tuple[float, float, float, float]) -> None:
    cases = [(r"\boxed{4}", "4"), (r"\boxed{5}", "4"), (r"\boxed{5}", "no formula")]
    rows = [(text, gold, [1] * n) for text, gold in cases for n in range(0, 130, 7)]
    texts, golds, ids = zip(*rows, strict=True)
    theirs = trl.rewards.get_cosine_scaled_reward(100, *bounds)
    expected = theirs(messages(texts), list(golds), list(ids))
    names = ("wrong_short", "wrong_long", "correct_long", "correct_short")
    config = grpo_rewards.CosineLengthConfig(
        max_tokens=100, **dict(zip(names, bounds, strict=True))
    )
    found = ours(grpo_rewards.CosineLength(config), [rollout(*row) for row in rows])
    assert found == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("penalty", [-1.0, -0.25, 0.0])
def test_repetition_penalty(size: int, penalty: float) -> None:
    rng = random.Random(size)
    ids = [[rng.randrange(4) for _ in range(rng.randrange(20))] for _ in range(200)]
    expected = trl.rewards.get_repetition_penalty_reward(size, penalty)(completion_ids=ids)
    config = grpo_rewards.RepetitionPenaltyConfig(ngram_size=size, max_penalty=penalty)
    found = ours(grpo_rewards.RepetitionPenalty(config), [rollout(tokens=t) for t in ids])
    assert found == expected
    assert [str(x) for x in found] == [str(x) for x in expected], "-0.0"
