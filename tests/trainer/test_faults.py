"""What must stop a run, and what its message must say."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo_core import EvaluationSettings, Run, SamplingParams, hookimpl, train
from grpo_core.errors import (
    ConfigError,
    DataError,
    NonFiniteGradientError,
    PluginError,
    RewardError,
    RunExistsError,
    SyncError,
)
from grpo_core.testing import ScriptedConfig, ScriptedGenerator
from grpo_core.types import LossOutput
from grpo_losses import Grpo, GrpoConfig

MakeRun = Callable[..., Run]


def scripted() -> ScriptedGenerator:
    return ScriptedGenerator(ScriptedConfig(completions=("yes", "no")))


class StaleVersion(ScriptedGenerator):
    """Accepts new weights without taking them."""

    def sync(self, update: Any) -> int:
        if self._update is None:
            super().sync(update)
        return self._update.policy_version


class StaleRollouts(ScriptedGenerator):
    """Says it took the weights, but returns what it sampled before."""

    def generate(self, request: Any) -> Iterator[Any]:
        for group in super().generate(request):
            yield dataclasses.replace(group, policy_version=0)


class OtherTemperature(ScriptedGenerator):
    def generate(self, request: Any) -> Iterator[Any]:
        other = request.sampling.model_copy(update={"temperature": 0.5})
        yield from super().generate(dataclasses.replace(request, sampling=other))


class LosesAGroup(ScriptedGenerator):
    def generate(self, request: Any) -> Iterator[Any]:
        yield from list(super().generate(request))[1:]


@pytest.mark.parametrize(
    ("generator", "error", "words"),
    [
        (StaleVersion, SyncError, "holds policy version 0 after being given version 1"),
        (
            StaleRollouts,
            SyncError,
            "sampled with policy versions \\['0'\\], but the policy is at 1",
        ),
        (OtherTemperature, SyncError, "another temperature"),
        (LosesAGroup, PluginError, "LosesAGroup"),
    ],
)
def test_generators_that_would_be_silently_wrong(
    make_run: MakeRun, generator: Any, error: type[Exception], words: str
) -> None:
    made = generator(ScriptedConfig(completions=("yes", "no")))
    with pytest.raises(error, match=words):
        train(make_run(generator=made))


def test_weights_that_never_reach_the_sampler_are_found_by_the_first_minibatch(
    make_run: MakeRun,
) -> None:
    """The generator has the right number, but samples from a copy of the first weights."""
    import copy

    class Copy(ScriptedGenerator):
        def sync(self, update: Any) -> int:
            if self._update is None:
                super().sync(dataclasses.replace(update, model=copy.deepcopy(update.model)))
            self._update = dataclasses.replace(self._update, policy_version=update.policy_version)
            return update.policy_version

    run = make_run(
        generator=Copy(ScriptedConfig(completions=("yes", "no"))),
        optimizer={"learning_rate": 0.05},
        train={"steps": 5},
    )
    with pytest.raises(SyncError, match="holds other weights"):
        train(run)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"train": {"group_size": 1}}, ConfigError, "group_size is 1.*every advantage would be 0"),
        ({"loss": Grpo(GrpoConfig(kl_coef=0.04))}, ConfigError, "needs reference log-probs"),
        ({"sampling": SamplingParams(temperature=0)}, ConfigError, "temperature is 0"),
        ({"rewards": []}, ConfigError, "there are no rewards"),
        ({"evaluation": EvaluationSettings()}, ConfigError, "no held-out prompts"),
        ({"sampling": SamplingParams(max_tokens=127)}, DataError, "the model's context of 128"),
    ],
)
def test_impossible_runs_are_refused_before_the_first_step(
    make_run: MakeRun, changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    run = make_run(**changes)
    with pytest.raises(error, match=words):
        train(run)
    assert run.policy.version == 0
    assert not (run.output / "config.yaml").exists()


def test_all_problems_are_told_at_once(make_run: MakeRun) -> None:
    run = make_run(train={"group_size": 1}, sampling=SamplingParams(temperature=0))
    with pytest.raises(ConfigError, match="group_size") as caught:
        train(run)
    assert "temperature" in str(caught.value)


def test_an_empty_task(make_run: MakeRun, list_task: Any) -> None:
    with pytest.raises(DataError, match="no training prompts"):
        make_run(task=list_task([]))


def test_an_empty_prompt_is_named(make_run: MakeRun, list_task: Any) -> None:
    with pytest.raises(DataError, match="'train/0' is empty"):
        train(make_run(task=list_task([""])))


def test_a_folder_that_holds_a_run_is_left_alone(make_run: MakeRun) -> None:
    train(make_run())
    before = {p: p.read_bytes() for p in make_run().output.iterdir()}
    with pytest.raises(RunExistsError, match="already holds a run"):
        train(make_run())
    assert {p: p.read_bytes() for p in make_run().output.iterdir()} == before


def test_a_run_that_did_nothing_leaves_its_folder_free(make_run: MakeRun) -> None:
    with pytest.raises(RewardError, match="oops"):
        train(make_run(rewards=[raises]))
    assert train(make_run()).status == "finished"


def test_two_runs_on_one_folder(make_run: MakeRun) -> None:
    class Second:
        @hookimpl
        def grpo_run_start(self, event: Any) -> None:
            with pytest.raises(RunExistsError, match="in use by another run"):
                train(make_run())

    train(make_run(observers=[Second()]))


def test_a_folder_that_cannot_be_made(make_run: MakeRun, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        train(make_run(output=tmp_path / "file" / "run"))


def raises(*_: Any, **__: Any) -> Any:
    raise KeyError("oops")


class BadObserver:
    @hookimpl
    def grpo_step_end(self, event: Any) -> None:
        raise OSError("disk gone")


def test_a_loss_gets_nothing_that_it_does_not_ask_for(make_run: MakeRun) -> None:
    def undeclared(tokens: Any) -> LossOutput:
        return LossOutput(loss_N=(tokens.logprobs_N - tokens.old_logprobs_N).exp())

    with pytest.raises(PluginError, match="loss undeclared failed"):
        train(make_run(loss=undeclared))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss": raises}, "loss raises failed in __call__: KeyError: 'oops'"),
        (
            {"loss": lambda tokens: LossOutput(loss_N=tokens.logprobs_N.mean())},
            "one loss per token",
        ),
        ({"advantage": raises}, "advantage raises failed in __call__"),
        ({"observers": [BadObserver()]}, "observer BadObserver failed in grpo_step_end: OSError"),
    ],
)
def test_failures_name_the_component(
    make_run: MakeRun, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(PluginError, match=words):
        train(make_run(**changes))


def test_an_error_in_a_later_step_saves_what_was_learned(make_run: MakeRun) -> None:
    calls: list[int] = []
    saved: list[int] = []
    ends: list[Any] = []

    def reward(completions: list[str], **_: Any) -> list[float]:
        calls.append(1)
        if len(calls) == 3:
            raise ConnectionError("judge is down")
        return [float("yes" in c) for c in completions]

    class Saver:
        def save(self, request: Any) -> None:
            saved.append(request.step)

        @hookimpl
        def grpo_run_end(self, event: Any) -> None:
            ends.append(event)

    with pytest.raises(RewardError, match="judge is down"):
        train(make_run(rewards=[reward], savers=[Saver()], train={"steps": 5}))
    assert saved == [2]
    assert ends[0].status == "failed"
    assert "judge is down" in ends[0].error


def test_non_finite_gradients_leave_the_weights_and_stop_the_run(make_run: MakeRun) -> None:
    run = make_run(
        loss=lambda tokens: LossOutput(loss_N=tokens.logprobs_N * torch.inf),
        train={"steps": 9},
    )
    before = [p.detach().clone() for p in run.policy.model.parameters()]
    with pytest.raises(NonFiniteGradientError, match="3 optimizer steps in a row"):
        train(run)
    for parameter, old in zip(run.policy.model.parameters(), before, strict=True):
        assert torch.equal(parameter, old)


def notices_of(run: Run) -> list[tuple[int, str, str]]:
    found: list[tuple[int, str, str]] = []

    class Watch:
        @hookimpl
        def grpo_step_end(self, event: Any) -> None:
            found.extend((event.step, n.code, n.text) for n in event.notices)

    run.lifecycle = type(run.lifecycle)([("watch", Watch())])
    train(run)
    return found


def test_a_constant_reward_is_said_to_teach_nothing(make_run: MakeRun) -> None:
    run = make_run(rewards=[lambda completions, **_: [0.25] * len(completions)], train={"steps": 7})
    found = notices_of(run)
    assert [step for step, code, _ in found if code == "no-signal"] == [2, 5]
    assert "Mean reward: 0.25" in found[0][2]
    assert (2, "zero-gradient") in [(step, code) for step, code, _ in found]


def test_rewards_that_all_abstain_are_not_called_equal(make_run: MakeRun) -> None:
    run = make_run(rewards=[lambda completions, **_: [None] * len(completions)], train={"steps": 3})
    codes = [code for _, code, _ in notices_of(run)]
    assert "no-reward" in codes
    assert "no-signal" not in codes
    [last] = {
        frozenset(n for n in step if n.startswith("reward/")) for step in run.result().history
    }
    assert not {"reward/mean", "reward/std"} & last


def test_cut_off_completions_are_said_to_be_so(make_run: MakeRun) -> None:
    run = make_run(sampling=SamplingParams(max_tokens=1), train={"steps": 3})
    codes = [code for _, code, _ in notices_of(run)]
    assert "all-truncated" in codes


def test_a_healthy_run_is_left_in_peace(make_run: MakeRun) -> None:
    assert notices_of(make_run(train={"steps": 6})) == []


def test_nan_logprobs_of_a_generator_do_not_pass(make_run: MakeRun) -> None:
    class Nan(ScriptedGenerator):
        def generate(self, request: Any) -> Iterator[Any]:
            for group in super().generate(request):
                completions = tuple(
                    dataclasses.replace(c, logprobs=(float("nan"),) * len(c.logprobs))
                    for c in group.completions_G
                )
                yield dataclasses.replace(group, completions_G=completions)

    with pytest.raises(SyncError, match="KL nan"):
        train(make_run(generator=Nan(ScriptedConfig(completions=("yes", "no")))))


def test_every_observer_hears_of_the_end(make_run: MakeRun) -> None:
    heard: list[str] = []

    class Fails:
        @hookimpl
        def grpo_run_end(self, event: Any) -> None:
            raise OSError("gone")

    class Hears:
        @hookimpl
        def grpo_run_end(self, event: Any) -> None:
            heard.append(event.status)

    with pytest.raises(PluginError, match="observer Fails failed in grpo_run_end"):
        train(make_run(observers=[Fails(), Hears()]))
    assert heard == ["finished"]
