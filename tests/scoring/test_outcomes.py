"""Reward providers: TRL's signature unchanged, and failures that are never numbers."""

from __future__ import annotations

import asyncio
import functools
import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from grpo_core.errors import ConfigError, RewardError
from grpo_core.rewards import CallableReward, Reward
from grpo_core.scoring import Scorer
from grpo_core.types import Abstained, Failed, Prompt, Rollout, ScoreRequest, Span, Value


def rollout(text: str, *, chat: bool = False, error: str | None = None, **columns: Any) -> Rollout:
    content: Any = ({"role": "user", "content": "q"},) if chat else "q"
    return Rollout(
        prompt=Prompt(id=f"p/{text}", content=content, columns=columns),
        prompt_ids=(1,),
        group=0,
        sample=0,
        spans=(Span(token_ids=(2, 3), logprobs=(-0.1, -0.2), policy_version=0),),
        text=text,
        finish_reason="error" if error else "stop",
        error=error,
    )


def score(function: Any, rollouts: Sequence[Rollout], **options: Any) -> Any:
    [outcomes] = Scorer([Reward(provider=function, **options)]).score(0, rollouts).outcomes_F_B
    return outcomes


def test_trl_signature_with_columns() -> None:
    seen: dict[str, Any] = {}

    def reward(prompts: Any, completions: Any, completion_ids: Any, **kwargs: Any) -> list[float]:
        ours = {"trainer_state", "log_extra", "log_metric"}
        assert ours < set(kwargs)
        columns = {name: value for name, value in kwargs.items() if name not in ours}
        seen.update(columns, prompts=prompts, completions=completions, ids=completion_ids)
        return [1.0, 0.5]

    outcomes = score(reward, [rollout("a", answer="1"), rollout("b", answer="2")])
    assert outcomes == (Value(value=1.0), Value(value=0.5))
    assert seen == {
        "prompts": ["q", "q"],
        "completions": ["a", "b"],
        "ids": [[2, 3], [2, 3]],
        "answer": ["1", "2"],
    }


def test_conversational_completions_are_messages() -> None:
    def reward(prompts: Any, completions: Any, **_: Any) -> list[float]:
        assert prompts == [[{"role": "user", "content": "q"}]]
        return [float(len(completions[0][0]["content"]))]

    assert score(reward, [rollout("abc", chat=True)]) == (Value(value=3.0),)


def test_a_function_gets_only_what_it_names() -> None:
    def reward(completions: list[str], answer: list[str]) -> list[bool]:
        return [a in c for a, c in zip(answer, completions, strict=True)]

    rows = [rollout("4", answer="4", other=1), rollout("5", answer="4", other=2)]
    assert [o.value for o in score(reward, rows)] == [1.0, 0.0]


def test_a_function_that_asks_for_a_missing_column() -> None:
    def reward(completions: list[str], solution: list[str], **_: Any) -> list[float]:
        return [1.0]

    with pytest.raises(RewardError, match="asks for 'solution', which the data do not have"):
        score(reward, [rollout("4", answer="4")])


class AsyncCallable:
    async def __call__(self, completions: list[str], **_: Any) -> list[float]:
        await asyncio.sleep(0)
        return [2.0] * len(completions)


async def slow(completions: list[str], scale: float = 1.0, **_: Any) -> list[float]:
    await asyncio.sleep(0)
    return [scale] * len(completions)


class Grouped:
    """A typed provider."""

    name = "grouped"

    def score(self, request: ScoreRequest) -> list[Any]:
        return [Abstained(reason="none of mine") for _ in request.rollouts_B]


@pytest.mark.parametrize(
    ("function", "name", "expected"),
    [
        (lambda completions: [None, 1], "<lambda>", (Abstained(), Value(value=1.0))),
        (lambda completions: np.array([0.5, 1]), "<lambda>", (Value(value=0.5), Value(value=1.0))),
        (lambda completions: torch.ones(2), "<lambda>", (Value(value=1.0),) * 2),
        (
            lambda completions: [np.float32(1), torch.tensor(0.0)],
            "<lambda>",
            (Value(value=1.0), Value(value=0.0)),
        ),
        (slow, "slow", (Value(value=1.0),) * 2),
        (functools.partial(slow, scale=3.0), "slow", (Value(value=3.0),) * 2),
        (AsyncCallable(), "AsyncCallable", (Value(value=2.0),) * 2),
        (Grouped(), "grouped", (Abstained(reason="none of mine"),) * 2),
    ],
)
def test_kinds_of_providers(function: Any, name: str, expected: Any) -> None:
    scorer = Scorer([Reward(provider=function)])
    assert scorer.names == (name,)
    assert scorer.score(0, [rollout("a"), rollout("b")]).outcomes_F_B[0] == expected


def test_async_providers_run_together() -> None:
    together = asyncio.Barrier(3)

    def provider(label: int) -> Any:
        async def reward(completions: list[str]) -> list[float]:
            async with asyncio.timeout(60):
                await together.wait()
            return [0.0] * len(completions)

        return Reward(provider=reward, label=str(label))

    scored = Scorer([provider(1), provider(2), provider(3)]).score(0, [rollout("a")])
    assert scored.outcomes_F_B == ((Value(value=0.0),),) * 3


def fails(completions: list[str]) -> list[float]:
    raise ValueError("no judge")


async def fails_later(completions: list[str]) -> list[float]:
    raise TimeoutError("too slow")


async def exits_later(completions: list[str]) -> list[float]:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (fails, "reward 'fails' raised ValueError: no judge"),
        (fails_later, "reward 'fails_later' raised TimeoutError: too slow"),
        (lambda completions: next(iter([])), "raised StopIteration"),
        (lambda completions: sys.exit(3), "raised SystemExit: 3"),
        (exits_later, "raised KeyboardInterrupt"),
        (lambda completions: [1.0], "returned 1 values for 2 completions"),
        (lambda completions: 1.0, "returned a float, not a list"),
        (lambda completions: {"a": 1}, "returned a dict, not a list"),
        (lambda completions: "ab", "returned a str, not a list"),
        (lambda completions: [1.0, "x"], "returned 'x' \\(str\\) for completion 1"),
        (lambda completions: [1.0, float("nan")], "returned nan, which is not finite"),
        (lambda completions: [1.0, -math.inf], "returned -inf, which is not finite"),
        (lambda completions: [1.0, -1e200], r"returned -1e\+200, which is too large"),
    ],
)
def test_what_is_no_reward_stops_the_run_by_name(function: Any, words: str) -> None:
    with pytest.raises(RewardError, match=words) as caught:
        score(function, [rollout("a"), rollout("b")])
    assert "never counted as 0" in str(caught.value)
    assert "'p/" in str(caught.value)


def test_the_message_names_the_prompt_and_completion_that_failed() -> None:
    with pytest.raises(RewardError, match="prompt 'p/b', completion 'b'"):
        score(lambda completions: [1.0, float("nan")], [rollout("a"), rollout("b")])


def test_dropped_failures_are_outcomes_not_zeros() -> None:
    outcomes = score(
        lambda completions: [1.0, float("nan")], [rollout("a"), rollout("b")], on_error="drop"
    )
    assert outcomes[0] == Value(value=1.0)
    assert isinstance(outcomes[1], Failed)
    assert outcomes[1].kind == "invalid"


def test_a_provider_that_never_succeeds_stops_the_run_even_if_dropped() -> None:
    with pytest.raises(RewardError, match="no judge"):
        score(fails, [rollout("a")], on_error="drop")


def test_failed_rollouts_are_not_shown_to_rewards() -> None:
    outcomes = score(
        lambda completions: [float(c == "b") for c in completions],
        [rollout("a", error="tool died"), rollout("b")],
    )
    assert isinstance(outcomes[0], Abstained)
    assert outcomes[1] == Value(value=1.0)
    assert isinstance(score(fails, [rollout("a", error="tool died")])[0], Abstained)


def test_two_rewards_of_one_name() -> None:
    with pytest.raises(RewardError, match="two rewards are called 'slow'"):
        Scorer([Reward(provider=slow), Reward(provider=slow)])
    Scorer([Reward(provider=slow), Reward(provider=slow, label="again")])


def test_something_that_cannot_be_called() -> None:
    with pytest.raises(ConfigError, match="must be callable"):
        CallableReward(3)  # type: ignore[arg-type]
