"""Requests for scoring, from a prompt's columns, completions and token ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from grpo_core.types import Prompt, Rollout, ScoreRequest, Span, Value

if TYPE_CHECKING:
    from grpo_core.types import RewardOutcome


def sampled(*ids: int) -> Span:
    return Span(token_ids=ids, logprobs=(-0.5,) * len(ids), policy_version=0)


def make_rollout(
    text: str = "",
    columns: dict[str, Any] | None = None,
    *,
    tokens: Sequence[int] = (2,),
    spans: Sequence[Span] | None = None,
    group: int = 0,
    sample: int = 0,
    content: Any = "2 +3 mod 10=?",
) -> Rollout:
    return Rollout(
        prompt=Prompt(id=f"train/{17 + group}", content=content, columns=columns or {}),
        prompt_ids=(1,),
        group=group,
        sample=sample,
        spans=tuple(spans) if spans is not None else (sampled(*tokens),),
        text=text,
        finish_reason="stop",
    )


def numbers(outcomes: Sequence[RewardOutcome]) -> list[float | None]:
    return [o.value if isinstance(o, Value) else None for o in outcomes]


@pytest.fixture(scope="session")
def rollout() -> Callable[..., Rollout]:
    """``rollout(text, columns, tokens=..., spans=..., group=..., sample=..., content=...)``."""
    return make_rollout


@pytest.fixture(scope="session")
def score() -> Callable[..., list[float | None]]:
    """``score(provider, columns, *texts)``: one number per text, None for no value."""

    def score(provider: Any, columns: dict[str, Any], *texts: str) -> list[float | None]:
        rollouts = [make_rollout(text, columns, sample=i) for i, text in enumerate(texts)]
        return numbers(provider.score(ScoreRequest(step=0, rollouts_B=tuple(rollouts))))

    return score


@pytest.fixture(scope="session")
def score_rollouts() -> Callable[..., list[float | None]]:
    """``score_rollouts(provider, *rollouts)``, likewise."""
    return lambda provider, *rollouts: numbers(
        provider.score(ScoreRequest(step=0, rollouts_B=tuple(rollouts)))
    )
