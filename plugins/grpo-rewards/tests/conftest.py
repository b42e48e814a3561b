"""Requests for scoring, from a prompt's columns and completions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from grpo_core.types import Prompt, Rollout, ScoreRequest, Span, Value

if TYPE_CHECKING:
    from collections.abc import Callable

    from grpo_core.types import RewardOutcome


def request(columns: dict[str, Any], *texts: str) -> ScoreRequest:
    prompt = Prompt(id="train/17", content="2 +3 mod 10=?", columns=columns)
    rollouts = [
        Rollout(
            prompt=prompt,
            prompt_ids=(1,),
            group=0,
            sample=sample,
            spans=(Span(token_ids=(2,), logprobs=(-0.5,), policy_version=0),),
            text=text,
            finish_reason="stop",
        )
        for sample, text in enumerate(texts)
    ]
    return ScoreRequest(step=0, rollouts_B=tuple(rollouts))


def numbers(outcomes: list[RewardOutcome]) -> list[float | None]:
    return [o.value if isinstance(o, Value) else None for o in outcomes]


@pytest.fixture
def score() -> Callable[..., list[float | None]]:
    """``score(provider, columns, *texts)``: one number per text, None for no value."""
    return lambda provider, columns, *texts: numbers(provider.score(request(columns, *texts)))
