"""Groups without signal are replaced, within bounds, the same way every time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from grpo_core import Run, hookimpl, train
from grpo_core.errors import ConfigError
from grpo_core.rewards import Reward
from grpo_core.settings import DynamicSamplingSettings
from grpo_core.testing import ScriptedConfig, ScriptedGenerator
from grpo_core.trainer.prompts import PromptStream
from grpo_core.types import LossOutput
from grpo_generator_hf import HFGenerator
from grpo_losses import Dapo

MakeRun = Callable[..., Run]


class Watch:
    """Remembers the rollouts and the end of every step."""

    def __init__(self) -> None:
        self.scored: list[Any] = []
        self.ends: list[Any] = []

    @hookimpl
    def grpo_rollouts_scored(self, event: Any) -> None:
        self.scored.append(event)

    @hookimpl
    def grpo_step_end(self, event: Any) -> None:
        self.ends.append(event)


class Unskipped(Dapo):
    """Trains on every rollout, and tells which tokens it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.skips_zero_advantage = False
        self.seen: list[Any] = []

    def __call__(self, tokens: Any) -> Any:
        self.seen.append(tokens)
        return super().__call__(tokens)


def every_second() -> ScriptedGenerator:
    """With groups of two, those with an odd number have no signal."""
    return ScriptedGenerator(ScriptedConfig(completions=("yes", "no", "yes", "yes")))


def weights(run: Run) -> list[torch.Tensor]:
    return [p.detach().clone() for p in run.policy.model.parameters()]


def test_a_group_without_signal_gives_way_to_another_prompt(
    make_run: MakeRun, list_task: Any
) -> None:
    watch, loss = Watch(), Unskipped()
    run = make_run(
        task=list_task([f"{c}?" for c in "abcdefgh"]),
        generator=every_second(),
        loss=loss,
        observers=[watch],
        train={"prompts_per_step": 3, "steps": 1, "dynamic_sampling": {"max_rounds": 5}},
    )
    metrics = train(run).history[0]
    event = watch.scored[0]
    # Group 1 gave way to group 4: round 1 at place 1.
    assert [r.group for r in event.rollouts_B] == [0, 0, 1, 1, 2, 2, 4, 4]
    assert [a == 0 for a in event.advantages_B] == [False] * 2 + [True] * 2 + [False] * 4
    assert len({r.prompt.id for r in event.rollouts_B}) == 4
    assert [len(column) for column in event.scored.outcomes_F_B] == [8]
    assert sum(tokens.rollouts for tokens in loss.seen) == 6
    assert metrics["sampling/rounds"] == 2
    assert metrics["sampling/groups_replaced"] == 1
    assert metrics["sampling/unfilled"] == 0
    # Of everything that was sampled, as without dynamic sampling.
    assert metrics["group/no_signal"] == 1 / 4
    assert metrics["reward/mean"] == metrics["reward/says_yes/mean"] == 5 / 8
    assert metrics["tokens/sampled"] == sum(r.action_count for r in event.rollouts_B)


def test_at_the_bound_the_step_goes_on_with_what_there_is(make_run: MakeRun) -> None:
    watch, loss = Watch(), Unskipped()
    run = make_run(
        # Two places: every round finds an odd number at place 1 again.
        generator=every_second(),
        loss=loss,
        observers=[watch],
        train={"steps": 3, "dynamic_sampling": {"max_rounds": 3}},
    )
    for metrics in train(run).history:
        assert metrics["sampling/rounds"] == 3
        assert metrics["sampling/groups_replaced"] == 2
        assert metrics["sampling/unfilled"] == 0.5
    assert [r.group for r in watch.scored[0].rollouts_B] == [0, 0, 1, 1, 3, 3, 5, 5]
    assert sum(tokens.rollouts for tokens in loss.seen) == 3 * 4
    assert [[n.code for n in end.notices] for end in watch.ends] == [[], [], ["too-few-groups"]]


def constant_for_a(prompts: list[str], completion_ids: Any, **_: Any) -> list[float]:
    return [
        1.0 if prompt < "d" else float(sum(ids) % 7)
        for prompt, ids in zip(prompts, completion_ids, strict=True)
    ]


def test_with_a_real_sampler_every_trained_group_has_signal_and_runs_repeat(
    make_run: MakeRun, list_task: Any, tmp_path: Path
) -> None:
    def go(name: str) -> tuple[Run, Any, Watch]:
        watch = Watch()
        run = make_run(
            task=list_task([f"{c}?" for c in "abcdefgh"]),
            generator=HFGenerator(),
            rewards=[constant_for_a],
            observers=[watch],
            output=tmp_path / name,
            train={
                "prompts_per_step": 4,
                "group_size": 4,
                "minibatches_per_step": 2,
                "dynamic_sampling": {},
            },
        )
        return run, train(run), watch

    run, result, watch = go("a")
    assert max(step["sampling/groups_replaced"] for step in result.history) > 0
    for event, metrics in zip(watch.scored, result.history, strict=True):
        assert metrics["sampling/unfilled"] == 0
        groups = {r.group for r, a in zip(event.rollouts_B, event.advantages_B, strict=True) if a}
        assert len(groups) == 4
        assert not any(r.prompt.content < "d" for r in event.rollouts_B if r.group in groups)
    again, _, other = go("b")
    assert all(map(torch.equal, weights(run), weights(again)))
    for event, repeated in zip(watch.scored, other.scored, strict=True):
        assert event.rollouts_B == repeated.rollouts_B


def test_where_every_group_has_signal_it_changes_no_bit(make_run: MakeRun, tmp_path: Path) -> None:
    def go(name: str, dynamic: Any) -> tuple[list[torch.Tensor], list[dict[str, float]]]:
        run = make_run(
            generator=HFGenerator(),
            rewards=[lambda completion_ids, **_: [float(i) for i, _ in enumerate(completion_ids)]],
            output=tmp_path / name,
            train={"dynamic_sampling": dynamic},
        )
        kept = [
            {k: v for k, v in step.items() if not k.startswith(("time/", "sampling/"))}
            for step in train(run).history
        ]
        return weights(run), kept

    off, off_metrics = go("off", None)
    on, on_metrics = go("on", {"max_rounds": 4})
    assert all(map(torch.equal, off, on))
    assert off_metrics == on_metrics


def test_a_provider_that_fails_on_one_replacement_is_not_taken_for_down(make_run: MakeRun) -> None:
    def fails_alone(completions: list[str], **_: Any) -> list[float]:
        if len(completions) == 2:
            raise TimeoutError("too slow for this prompt")
        return [float("yes" in c) for c in completions]

    run = make_run(
        generator=every_second(),
        rewards=[Reward(provider=fails_alone, on_error="drop")],
        train={"steps": 1, "dynamic_sampling": {"max_rounds": 2}},
    )
    metrics = train(run).history[0]
    assert metrics["reward/fails_alone/failed"] == 2 / 6
    assert metrics["sampling/unfilled"] == 0.5


class TestReplay:
    def varied_at_first(self) -> Callable[..., list[float]]:
        calls: list[int] = []

        def reward(completions: list[str], **_: Any) -> list[float]:
            calls.append(1)
            return [float("yes" in c and len(calls) == 1) for c in completions]

        return reward

    def test_earlier_groups_fill_the_step_once_with_the_logprobs_of_then(
        self, make_run: MakeRun
    ) -> None:
        watch, loss = Watch(), Unskipped()
        run = make_run(
            rewards=[self.varied_at_first()],
            loss=loss,
            observers=[watch],
            optimizer={"learning_rate": 0.05, "schedule": "constant"},
            train={
                "prompts_per_step": 3,
                "steps": 3,
                "dynamic_sampling": {"max_rounds": 1, "replay_groups": 2},
            },
        )
        history = train(run).history
        assert [m["sampling/groups_replayed"] for m in history] == [0, 2, 0]
        assert [m["sampling/unfilled"] for m in history] == [0, 1 / 3, 1]
        event = watch.scored[1]
        replayed = [
            (r, a)
            for r, a in zip(event.rollouts_B, event.advantages_B, strict=True)
            if r.policy_version == 0
        ]
        assert len(replayed) == 4
        assert all(a for _, a in replayed)
        # The two that were longest ago in the buffer gave way: it holds the last two of step 0.
        originals = watch.scored[0].rollouts_B
        assert {r.prompt.id for r, _ in replayed} == {r.prompt.id for r in originals[2:]}
        # The ratio is to the policy of then, which this learning rate has left behind ...
        old_N = torch.cat([t.old_logprobs_N for t in loss.seen[1:2]])
        of_then = {x for r, _ in replayed for x in torch.tensor(r.sampling_logprobs).tolist()}
        assert of_then <= set(old_N.tolist())
        assert abs(history[1]["ratio/mean"] - 1) > 0.05
        # ... and no reason to think that the sampler holds other weights.
        assert history[1]["ratio/sampler_mismatch_kl"] < 1e-9
        assert history[0]["ratio/mean"] == history[2]["ratio/mean"] == 1

    def test_a_loss_that_cannot_correct_for_older_weights_is_refused(
        self, make_run: MakeRun
    ) -> None:
        def reinforce(tokens: Any) -> LossOutput:
            return LossOutput(loss_N=-tokens.advantages_N * tokens.logprobs_N)

        with pytest.raises(ConfigError, match="takes no ratio to the policy that sampled"):
            train(make_run(loss=reinforce, train={"dynamic_sampling": {"replay_groups": 2}}))


def test_settings_that_do_nothing_are_refused() -> None:
    with pytest.raises(ValidationError, match="replaces nothing; raise one of them"):
        DynamicSamplingSettings(max_rounds=1)


class TestPrompts:
    def stream(self, size: int) -> PromptStream:
        return PromptStream(range(size), per_step=4, seed=3)  # type: ignore[arg-type]

    def test_replacements_are_others_and_none_twice(self) -> None:
        stream = self.stream(20)
        for step in range(12):
            drawn = [i for number in range(5) for i in stream.indices(step, number)]
            assert sorted(drawn) == list(range(20))

    def test_they_are_a_function_of_seed_step_and_round(self) -> None:
        stream, other = self.stream(50), self.stream(50)
        asked = [(step, number) for step in range(4) for number in range(4)]
        found = {where: stream.indices(*where) for where in asked}
        assert {where: other.indices(*where) for where in reversed(asked)} == found
        assert len({tuple(found[step, 1]) for step in range(4)}) == 4

    def test_a_small_task_repeats_its_prompts(self) -> None:
        assert len(self.stream(2).indices(0, 3)) == 4
        # At each place another one every time.
        eight = self.stream(8)
        rounds = [eight.indices(0, number) for number in range(1, 5)]
        assert all(len(set(place)) == 4 for place in zip(*rounds, strict=True))
        assert set(self.stream(5).indices(0, 1)) == set(range(5)) - set(self.stream(5).indices(0))
