"""The suite passes the core's own environment, and each check catches what it is for."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from grpo_core.builtin.single_turn import SingleTurn
from grpo_core.errors import PluginError
from grpo_core.testing import EnvironmentSuite
from grpo_core.types import Rollout


class TestSingleTurn(EnvironmentSuite):
    def make(self) -> SingleTurn:
        return SingleTurn()


class Changed(SingleTurn):
    """Single turns with something wrong."""

    def __init__(self, change: Callable[[list[Rollout]], list[Rollout]]) -> None:
        self.change = change

    def rollouts(self, request: Any, generator: Any) -> Iterator[Sequence[Rollout]]:
        for group in super().rollouts(request, generator):
            yield self.change(list(group))


def each(**changes: Any) -> Callable[[list[Rollout]], list[Rollout]]:
    """Fields of every rollout replaced by functions of it."""
    return lambda group: [replace(r, **{k: f(r) for k, f in changes.items()}) for r in group]


def again(rollout: Rollout) -> Any:
    """As if its text had been tokenised to something else."""
    (span,) = rollout.spans
    return (replace(span, token_ids=(span.token_ids[-1], *span.token_ids[:-1])),)


WRONG: dict[str, Callable[[list[Rollout]], list[Rollout]]] = {
    "whole_groups_each_once": lambda group: group[:1],
    "rollouts_are_whole": each(error=lambda r: "gave up"),
    "sampled_tokens_are_those_of_the_generator": each(spans=again),
    "the_text_is_what_the_policy_said": each(text=lambda r: r.text + "<answer>5</answer>"),
    "the_same_again": each(extra=lambda r: {"chance": random.random()}),
    "the_same_alone": each(extra=lambda r: {"chance": random.random()}),
    "metrics_have_names_of_their_own": each(metrics=lambda r: {"reward/mean": 1.0}),
}


def test_every_check_has_a_failure() -> None:
    checks = {name for name in dir(EnvironmentSuite) if name.startswith("test_")}
    assert {f"test_{name}" for name in WRONG} == checks


@pytest.mark.parametrize("check", WRONG)
def test_each_check_fails(check: str) -> None:
    class Suite(EnvironmentSuite):
        def make(self) -> Changed:
            return Changed(WRONG[check])

    with pytest.raises((AssertionError, PluginError)):
        getattr(Suite(), f"test_{check}")()
