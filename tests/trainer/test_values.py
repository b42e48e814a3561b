"""The value head: on the hidden state before each action token, trained with everything else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo_core import ModelSettings, OptimizerSettings, Policy, Run, train
from grpo_core.errors import PluginError
from grpo_core.types import (
    ActionTokens,
    AdvantageRequest,
    AdvantageResult,
    LossOutput,
    Prompt,
    Rollout,
    Span,
)

SHAPES = [((5, 6, 7), (8, 9)), ((5, 6, 7), (8, 3, 2, 1)), ((4,), ()), ((4,), (9,))]


def rollouts() -> list[Rollout]:
    return [
        Rollout(
            prompt=Prompt(id=str(i), content=""),
            prompt_ids=prompt,
            group=prompt[0],
            sample=i,
            spans=(Span(token_ids=ids, logprobs=(0.0,) * len(ids), policy_version=0),),
            text="",
            finish_reason="stop",
        )
        for i, (prompt, ids) in enumerate(SHAPES)
    ]


@pytest.mark.parametrize("layout", ["prefix-tree", "packed", "padded"])
def test_it_reads_the_state_before_each_token(tiny_model: Path, layout: Any) -> None:
    policy = Policy(ModelSettings(path=str(tiny_model), layout=layout))
    policy.prepare(
        optimizer_steps=1,
        temperature=0.7,
        tokens_per_microbatch=7,
        needs=frozenset({"values"}),
    )
    assert [v.tolist() for v in policy.values(rollouts())] == [[0.0] * len(s[1]) for s in SHAPES]
    rng = torch.Generator().manual_seed(0)
    head = policy._trained.value_head
    assert head is not None
    with torch.no_grad():
        head.weight.normal_(generator=rng)
        head.bias.fill_(0.3)
    for (prompt, ids), found in zip(SHAPES, policy.values(rollouts()), strict=True):
        with torch.no_grad():
            states_T = policy.model.base_model(torch.tensor([prompt + ids]))[0][0]
        before = states_T[len(prompt) - 1 : len(prompt) + len(ids) - 1]
        torch.testing.assert_close(found, head(before).squeeze(-1), rtol=1e-4, atol=1e-5)


def test_without_a_need_there_is_none(tiny_model: Path) -> None:
    policy = Policy(ModelSettings(path=str(tiny_model)))
    policy.prepare(optimizer_steps=1, temperature=1.0, tokens_per_microbatch=64)
    assert not [name for name in policy.state_dict()["weights"] if "value_head" in name]


class Reinforced:
    """The advantage that a value head gives, in its simplest form."""

    needs = frozenset({"values"})

    def __init__(self, targets: Callable[[AdvantageRequest], Any]) -> None:
        self._targets = targets

    def __call__(self, request: AdvantageRequest) -> AdvantageResult:
        assert request.values is not None
        return AdvantageResult(
            advantages_B=torch.zeros(len(request.group_B)), value_targets=self._targets(request)
        )


class ValueLoss:
    """Towards the targets, and nothing else."""

    needs = frozenset({"values"})

    def __call__(self, tokens: ActionTokens) -> LossOutput:
        assert tokens.values_N is not None
        assert tokens.value_targets_N is not None
        return LossOutput(loss_N=(tokens.values_N - tokens.value_targets_N).square())


def twos(request: AdvantageRequest) -> list[torch.Tensor]:
    return [torch.full((n,), 2.0) for n in request.action_count_B.tolist()]


def test_it_learns_its_targets(make_run: Callable[..., Run], tiny_model: Path) -> None:
    optimizer = OptimizerSettings(learning_rate=0.05, schedule="constant")
    run = make_run(
        policy=Policy(ModelSettings(path=str(tiny_model)), optimizer),
        advantage=Reinforced(twos),
        loss=ValueLoss(),
        train={"steps": 40},
    )
    history = train(run).history
    assert history[0]["loss/total"] == pytest.approx(4.0, abs=1e-5)
    assert history[-1]["loss/total"] < 0.5


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (lambda request: None, "returned no value_targets, which are due"),
        (lambda request: twos(request)[:1], "returned 1 tensors of value targets, 4 are due"),
        (lambda request: [t[:-1] for t in twos(request)], "returned value targets of shape"),
        (lambda request: [t / 0 for t in twos(request)], "value targets that are not finite"),
    ],
)
def test_targets_that_are_none(make_run: Callable[..., Run], targets: Any, message: str) -> None:
    run = make_run(advantage=Reinforced(targets), loss=ValueLoss())
    with pytest.raises(PluginError, match=message):
        train(run)
