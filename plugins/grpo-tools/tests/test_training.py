"""What the trainer makes of rollouts with several spans."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from grpo_core import ModelSettings, OptimizerSettings, Policy, Run, SamplingParams, TrainSettings
from grpo_core import train as train_run
from grpo_core.demo import checkpoint
from grpo_core.types import Prompt, Rollout
from grpo_losses import Dapo, GroupAdvantage
from grpo_tools import Tools, ToolsConfig


@pytest.fixture(scope="module")
def script(kit: Any) -> tuple[tuple[str, ...], ...]:
    """What four samples say, turn by turn."""
    adds = kit.call("add", a=1, b=2)
    return (
        (adds, "it is 3"),
        (adds, "no, 4"),
        ("it is 3",),
        (adds, kit.call("shout", text="x"), "hm"),
    )


@pytest.fixture
def group(make_request: Any, scripted: Any, script: Any, kit: Any) -> list[Rollout]:
    environment = Tools(ToolsConfig(chat_template=kit.template), tools=kit.tools)
    request = make_request("1+2?", group_size=4, max_tokens=400)
    return kit.flat(environment.rollouts(request, scripted(*script)))


def full_logprobs(policy: Policy, rollout: Rollout) -> torch.Tensor:
    """Of the sampled tokens, from one pass over the sequence alone."""
    ids = torch.tensor([[*rollout.prompt_ids, *rollout.token_ids]])
    with torch.no_grad():
        logits = policy.model(input_ids=ids).logits[0].double()
    at = torch.tensor(rollout.action_positions) + len(rollout.prompt_ids)
    return logits[at - 1].log_softmax(-1).gather(1, ids[0, at, None]).squeeze(1)


def test_logprobs_of_the_tree_equal_a_full_forward(policy: Policy, group: list[Rollout]) -> None:
    for found, rollout in zip(policy.logprobs(group), group, strict=True):
        expected = full_logprobs(policy, rollout)
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
        reported = torch.tensor(rollout.sampling_logprobs, dtype=torch.float64)
        torch.testing.assert_close(reported, expected, rtol=0, atol=1e-5)


def test_what_turns_share_is_computed_once(policy: Policy, group: list[Rollout]) -> None:
    """The first call and its result are the same in three of four rollouts."""
    from grpo_core.policy.layouts.tree import PrefixTreeLayout

    layout = PrefixTreeLayout()
    (inputs,) = layout.microbatches(group, tokens_per_microbatch=10_000)
    alone = sum(len(r.prompt_ids) + len(r.token_ids) - 1 for r in group)
    shared_turn = len(group[0].spans[0].token_ids) + len(group[0].spans[1].token_ids)
    assert inputs.tokens <= alone - 3 * len(group[0].prompt_ids) - 2 * shared_turn


def test_no_gradient_comes_from_what_tools_say(make_request: Any) -> None:
    """Two rollouts that differ only in the last inserted token, which nothing sampled follows:
    the gradient is the same to the bit."""
    policy = Policy(ModelSettings(path=str(checkpoint("habit"))))
    policy.prepare(optimizer_steps=1, temperature=1.0, tokens_per_microbatch=4096)
    rollout = Rollout(
        prompt=Prompt(id="0", content="x"),
        prompt_ids=(5, 9, 31),
        group=0,
        sample=0,
        spans=(),
        text="",
        finish_reason="stop",
    )
    from grpo_core.types import Span

    def gradients(inserted: tuple[int, ...], behind: bool) -> list[torch.Tensor]:
        spans = [
            Span(token_ids=(7, 60, 2), logprobs=(-1.0,) * 3, policy_version=0),
            Span(token_ids=inserted, logprobs=None, policy_version=None),
        ]
        if behind:
            spans.append(Span(token_ids=(8, 2), logprobs=(-1.0,) * 2, policy_version=0))
        made = replace(rollout, spans=tuple(spans))
        policy.model.zero_grad()
        (inputs,) = policy._layout.microbatches([made], tokens_per_microbatch=4096)
        found = policy._module(inputs)
        found[0].sum().backward()
        assert len(found[0]) == made.action_count
        return [p.grad.clone() for p in policy.model.parameters() if p.grad is not None]

    first, second = gradients((40, 41), False), gradients((90, 17), False)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    # As context they do matter.
    first, second = gradients((40, 41), True), gradients((90, 17), True)
    assert any(not torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_run_trains_and_counts(tmp_path: Any, script: Any, kit: Any) -> None:
    """Attestation passes, environment metrics are a step's, rewards see messages."""
    from grpo_core.testing import ScriptedConfig, ScriptedGenerator

    seen: list[Any] = []

    def used_tools(completions: list[Any], **_: Any) -> list[float]:
        seen.extend(completions)
        return [float(any(m["role"] == "tool" for m in c)) for c in completions]

    class Questions:
        def train_prompts(self) -> list[Prompt]:
            return [
                Prompt(id=str(i), content=({"role": "user", "content": f"{i}+2?"},))
                for i in range(2)
            ]

        def eval_prompts(self) -> list[Prompt]:
            return []

    before = Policy(ModelSettings(path=str(checkpoint("habit"))))
    run = Run(
        policy=Policy(
            ModelSettings(path=str(checkpoint("habit"))), OptimizerSettings(learning_rate=1e-3)
        ),
        task=Questions(),
        generator=ScriptedGenerator(ScriptedConfig(completions=script)),
        environment=Tools(ToolsConfig(chat_template=kit.template), tools=kit.tools),
        advantage=GroupAdvantage(),
        loss=Dapo(),
        rewards=[used_tools],
        settings=TrainSettings(steps=2, prompts_per_step=2, group_size=4),
        sampling=SamplingParams(max_tokens=400),
        output=tmp_path / "run",
    )
    result = train_run(run)
    assert {m["role"] for completion in seen for m in completion} == {"assistant", "tool"}
    for step in result.history:
        assert step["tools/calls"] == 1.0  # 1, 1, 0 and 2
        assert step["tools/failed"] == 0.0
        assert step["reward/used_tools/mean"] == 0.75
        assert step["ratio/sampler_mismatch"] < 1e-4
    moved = [
        not torch.equal(a, b)
        for a, b in zip(before.model.parameters(), run.policy.model.parameters(), strict=True)
    ]
    assert any(moved)
