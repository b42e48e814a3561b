"""Turns served by generators that know nothing of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from grpo_core.errors import PluginError
from grpo_core.metrics import StepMetrics
from grpo_core.settings import SamplingParams
from grpo_core.trainer.observe import observe_environment
from grpo_core.turns import sample_turns
from grpo_core.types import (
    Completion,
    GeneratedGroup,
    GenerateRequest,
    Prompt,
    Rollout,
    Turn,
    TurnRequest,
)


class Simple:
    """Says its prompt's length, as often as there is room."""

    def __init__(self, change: Any = lambda group: [group]) -> None:
        self.requests: list[GenerateRequest] = []
        self.change = change

    def sync(self, update: Any) -> int:
        return 0

    def generate(self, request: GenerateRequest) -> Iterator[GeneratedGroup]:
        self.requests.append(request)
        count = request.sampling.max_tokens
        for index in reversed(range(len(request.prompt_ids_P))):
            ids = (len(request.prompt_ids_P[index]),) * count
            completion = Completion(token_ids=ids, logprobs=(-1.0,) * count, finish_reason="length")
            yield from self.change(
                GeneratedGroup(index=index, completions_G=(completion,), policy_version=4)
            )

    def close(self) -> None: ...


def turns_request(*waves: list[Turn]) -> TurnRequest:
    left = list(waves)
    return TurnRequest(
        step=1,
        seed=2,
        group_size=4,
        rollouts=9,
        longest=99,
        sampling=SamplingParams(max_tokens=50, temperature=0.7),
        eos_token_ids=(9,),
        take=lambda wait: left.pop(0) if left else (),
    )


def turn(key: int, sample: int, length: int, room: int, number: int = 0) -> Turn:
    return Turn(prompt_ids=(1,) * length, key=key, sample=sample, number=number, max_tokens=room)


def test_waves_keep_rollouts_and_bounds_apart() -> None:
    first = [turn(0, 0, 3, 5), turn(0, 1, 3, 5), turn(2, 3, 4, 7)]
    generator = Simple()
    found = list(sample_turns(generator, turns_request(first, [turn(0, 1, 9, 2, 1)])))
    assert {(s.turn.key, s.turn.sample, s.turn.number): s.completion.token_ids for s in found} == {
        (0, 0, 0): (3,) * 5,
        (0, 1, 0): (3,) * 5,
        (2, 3, 0): (4,) * 7,
        (0, 1, 1): (9,) * 2,
    }
    assert {s.policy_version for s in found} == {4}
    assert [r.prompt_keys_P for r in generator.requests] == [(11,), (0, 1), (1 + 2**32,)]
    assert {r.group_size for r in generator.requests} == {1}
    assert [r.sampling.max_tokens for r in generator.requests] == [7, 5, 2]
    assert {r.sampling.temperature for r in generator.requests} == {0.7}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda group: [], r"no completions for prompts \[0\] of 1"),
        (lambda group: [group, group], "1 completions for group 0"),
        (lambda group: [replace(group, index=5)], "for group 5"),
        (lambda group: [replace(group, completions_G=group.completions_G * 2)], "2 completions"),
        (
            lambda group: [
                replace(group, completions_G=(replace(group.completions_G[0], logprobs=()),))
            ],
            "3 tokens but 0 log-probs for turn 0 of sample 1 of prompt 0",
        ),
        (
            lambda group: [
                replace(
                    group,
                    completions_G=(
                        replace(group.completions_G[0], token_ids=(1,) * 4, logprobs=(-1.0,) * 4),
                    ),
                )
            ],
            "4 tokens for turn 0 of sample 1 of prompt 0, which had room for 3",
        ),
    ],
)
def test_generators_that_break_their_promise(change: Any, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        list(sample_turns(Simple(change), turns_request([turn(0, 1, 3, 3)])))


def rollout(**metrics: float) -> Rollout:
    return Rollout(
        prompt=Prompt(id="0", content="x"),
        prompt_ids=(1,),
        group=0,
        sample=0,
        spans=(),
        text="",
        finish_reason="stop",
        metrics={name.replace("_", "/"): value for name, value in metrics.items()},
    )


def test_environment_metrics_are_means_over_those_that_have_them() -> None:
    metrics = StepMetrics()
    observe_environment(metrics, [rollout(game_won=1.0), rollout(game_won=0.0), rollout()])
    assert metrics.reduced(lambda pieces: pieces) == {"game/won": 0.5}
    for name in ("won", "reward_mean", "loss_total"):
        with pytest.raises(PluginError, match="must be called group/name"):
            observe_environment(metrics, [rollout(**{name: 1.0})])
