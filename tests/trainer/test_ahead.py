"""`schedule: ahead`: what comes from which weights, at the same time as what, and what stops it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo_core import CheckpointSettings, EvaluationSettings, Run, TrainSettings, hookimpl, train
from grpo_core.errors import ConfigError, PluginError, SyncError
from grpo_core.trainer.sampling import places, request_of
from grpo_core.types import (
    Completion,
    GeneratedGroup,
    GenerateRequest,
    Rollout,
    RolloutsScored,
    Value,
    WeightUpdate,
)
from grpo_generator_hf import HFConfig, HFGenerator
from grpo_losses import Dapo, DapoConfig

MakeRun = Callable[..., Run]
AHEAD = {"schedule": "ahead", "steps": 4, "prompts_per_step": 2, "group_size": 3}


def apart() -> HFGenerator:
    return HFGenerator(HFConfig(device="cpu"))


def varied(completion_ids: Any, **_: Any) -> list[float]:
    return [float(sum(ids) % 7) for ids in completion_ids]


class Recorder:
    """The rollouts of every step, and the weights that the steps began with."""

    def __init__(self) -> None:
        self.rollouts: list[list[Rollout]] = []
        self.weights: dict[int, dict[str, torch.Tensor]] = {}
        self.run: Run | None = None

    @hookimpl
    def grpo_weights_synced(self, event: Any) -> None:
        assert self.run is not None
        named = self.run.policy.model.state_dict()
        self.weights[event.policy_version] = {n: t.clone() for n, t in named.items()}

    @hookimpl
    def grpo_rollouts_scored(self, event: RolloutsScored) -> None:
        self.rollouts.append(list(event.rollouts_B))


def recorded(make_run: MakeRun, **changes: Any) -> tuple[Run, Recorder]:
    recorder = Recorder()
    settings = {**AHEAD, **changes.pop("train", {})}
    defaults = {"generator": apart(), "rewards": [varied]}
    observers = [recorder, *changes.pop("observers", ())]
    run = make_run(**{**defaults, **changes}, train=settings, observers=observers)
    recorder.run = run
    return run, recorder


def test_each_step_trains_on_what_the_weights_before_sampled(make_run: MakeRun) -> None:
    run, recorder = recorded(make_run, train={"passes_per_step": 2})
    result = train(run)
    behind = [step["sampling/staleness/mean"] for step in result.history]
    assert behind == [0.0, 2.0, 2.0, 2.0]
    assert [step["sampling/staleness/max"] for step in result.history] == behind
    # The same tokens as a generator draws that has those weights and nothing to do with threads.
    other = make_run(generator=HFGenerator(), train={**AHEAD, "schedule": "synchronous"})
    other.policy.prepare(optimizer_steps=1, temperature=1.0, tokens_per_microbatch=1000)
    for step, rollouts in enumerate(recorder.rollouts):
        version = 2 * max(0, step - 1)
        other.policy.model.load_state_dict(recorder.weights[version])
        other.generator.sync(other.policy.weight_update())
        prompts, keys = other.prompts.at(step), places(other)
        request = request_of(
            *(other, [prompts[k] for k in keys]),
            keys=keys,
            step=step,
            sampling=other.sampling,
            group_size=3,
        )
        groups = sorted(other.generator.generate(request.generate), key=lambda g: g.index)
        expected = [c.token_ids for group in groups for c in group.completions_G]
        assert [r.token_ids for r in rollouts] == expected
        assert {r.policy_version for r in rollouts} == {version}


def test_the_ratio_is_to_the_weights_that_sampled(make_run: MakeRun) -> None:
    run, recorder = recorded(make_run, train={"steps": 2})
    first = train(run).history[1]
    rollouts = recorder.rollouts[1]
    other = make_run(generator=HFGenerator(), train={**AHEAD, "schedule": "synchronous"})
    other.policy.prepare(optimizer_steps=1, temperature=1.0, tokens_per_microbatch=1000)
    logprobs = []
    for version in (0, 1):
        other.policy.model.load_state_dict(recorder.weights[version])
        logprobs.append(torch.cat(other.policy.logprobs(rollouts)))
    ratio = (logprobs[1] - logprobs[0]).exp()
    assert float(ratio.max()) > 1.0001
    assert first["ratio/max"] == pytest.approx(float(ratio.max()), rel=1e-4)
    assert first["ratio/min"] == pytest.approx(float(ratio.min()), rel=1e-4)


class Waits(HFGenerator):
    """Samples the second step only while the first is being trained on."""

    def __init__(self, updating: threading.Event) -> None:
        super().__init__(HFConfig(device="cpu"))
        self._updating = updating

    def generate(self, request: GenerateRequest) -> Iterator[GeneratedGroup]:
        in_background = threading.current_thread() is not threading.main_thread()
        if in_background and request.step == 1 and not self._updating.wait(60):
            raise TimeoutError("the first step was not trained on meanwhile")
        return super().generate(request)


def test_sampling_goes_on_while_the_policy_is_updated(make_run: MakeRun) -> None:
    updating = threading.Event()

    class Signals(Dapo):
        def __call__(self, tokens: Any) -> Any:
            updating.set()
            return super().__call__(tokens)

    run, _ = recorded(make_run, generator=Waits(updating), loss=Signals(), train={"steps": 2})
    assert train(run).status == "finished"


@pytest.mark.parametrize("lora", [None, {"r": 4}])
def test_a_copy_has_the_policys_weights_and_keeps_them(
    make_run: MakeRun, lora: dict[str, int] | None
) -> None:
    run, _ = recorded(make_run, model={"lora": lora}, optimizer={"learning_rate": 0.02})
    history = train(run).history
    assert all(step["ratio/sampler_mismatch_max"] < 1e-5 for step in history)
    # Else there would have been nothing to copy.
    assert max(step["ratio/max"] for step in history) > 1.1


def seldom(completion_ids: Any, **_: Any) -> list[float]:
    """So that many groups have no signal."""
    return [float(sum(ids) % 4 == 0) for ids in completion_ids]


class OneAtATime(HFGenerator):
    """Fails when two threads sample at once, which a generator need not bear."""

    def __init__(self, delay: float) -> None:
        super().__init__(HFConfig(device="cpu"))
        self._delay = delay
        self._sampling = threading.Lock()

    def generate(self, request: GenerateRequest) -> Iterator[GeneratedGroup]:
        assert self._sampling.acquire(blocking=False), "sampled by two threads at once"
        try:
            time.sleep(self._delay)
            yield from super().generate(request)
        finally:
            self._sampling.release()


def test_further_rounds_come_from_the_weights_of_now_and_before_the_next_step(
    make_run: MakeRun, tmp_path: Path
) -> None:
    found = []
    for delay in (0.0, 0.2):
        run, recorder = recorded(
            make_run,
            generator=OneAtATime(delay),
            rewards=[seldom],
            output=tmp_path / str(delay),
            train={"steps": 5, "prompts_per_step": 3, "dynamic_sampling": {"max_rounds": 4}},
        )
        history = train(run).history
        assert max(step["sampling/rounds"] for step in history[1:]) > 1
        found.append([[r.token_ids for r in rollouts] for rollouts in recorder.rollouts])
        for step, rollouts in enumerate(recorder.rollouts):
            ahead = {r.policy_version for r in rollouts if r.group < 3}
            fresh = {r.policy_version for r in rollouts if r.group >= 3}
            assert ahead == {max(0, step - 1)}
            assert fresh <= {step}
    assert found[0] == found[1]


class SyncsOnce(HFGenerator):
    """Says that it holds what it was given."""

    def sync(self, update: WeightUpdate) -> int:
        if self._held is None:
            return super().sync(update)
        from dataclasses import replace

        self._held = replace(self._held, policy_version=update.policy_version)
        return update.policy_version


def test_weights_that_do_not_arrive_are_found_although_none_are_trained_on_fresh(
    make_run: MakeRun,
) -> None:
    generator = SyncsOnce(HFConfig(device="cpu"))
    run, recorder = recorded(make_run, generator=generator, optimizer={"learning_rate": 0.05})
    with pytest.raises(SyncError, match="disagree about the same tokens"):
        train(run)
    assert len(recorder.rollouts) == 1


def test_a_failure_in_the_other_thread_ends_the_run_under_its_name(make_run: MakeRun) -> None:
    class Breaks(HFGenerator):
        def generate(self, request: GenerateRequest) -> Iterator[GeneratedGroup]:
            if request.step == 2 and threading.current_thread() is not threading.main_thread():
                raise OSError("no route to host")
            return super().generate(request)

    run, recorder = recorded(make_run, generator=Breaks(HFConfig(device="cpu")))
    with pytest.raises(PluginError, match=r"no route to host") as caught:
        train(run)
    assert "SingleTurn" in str(caught.value)
    assert len(recorder.rollouts) == 2
    assert not [t for t in threading.enumerate() if t.name.startswith("grpo-ahead")]


def test_nothing_is_scored_twice(make_run: MakeRun, list_task: Any) -> None:
    """An evaluation between two steps has the numbers of the step that is being sampled."""

    class Counts:
        name = "counts"

        def __init__(self) -> None:
            self.seen: list[int] = []

        def score(self, request: Any) -> Any:
            self.seen.extend(id(r) for r in request.rollouts_B)
            self.kept = [*getattr(self, "kept", ()), *request.rollouts_B]
            return [Value(value=float(sum(r.token_ids) % 7)) for r in request.rollouts_B]

    counts = Counts()
    run, _ = recorded(
        make_run,
        rewards=[counts],
        task=list_task(["a?", "b?", "c?"], held_out=["d?", "e?"]),
        evaluation=EvaluationSettings(every=1),
    )
    train(run)
    assert len(counts.seen) == len(set(counts.seen)) == 4 * 2 * 3 + 5 * 2 * 2


class TokenByToken:
    """Draws token after token from a copy of the policy; weights may change between two of them."""

    samples_apart = True
    syncs_in_flight = True

    def __init__(self, pause: float = 0.0) -> None:
        self._lock = threading.Lock()
        self._source = HFGenerator(HFConfig(device="cpu"))
        self._pause = pause
        self._closed = False

    def sync(self, update: WeightUpdate) -> int:
        with self._lock:
            return self._source.sync(update)

    def close(self) -> None:
        self._closed = True

    def generate(self, request: GenerateRequest) -> Iterator[GeneratedGroup]:
        for index, (ids, key) in enumerate(
            zip(request.prompt_ids_P, request.prompt_keys_P, strict=True)
        ):
            drawn = [self._one(request, ids, key, n) for n in range(request.group_size)]
            newest = max(v for c in drawn for v in c.policy_versions or ())
            yield GeneratedGroup(index=index, completions_G=tuple(drawn), policy_version=newest)

    @torch.no_grad()
    def _one(
        self, request: GenerateRequest, prompt: tuple[int, ...], key: int, sample: int
    ) -> Completion:
        chance = torch.Generator().manual_seed(hash((request.step, key, sample)) % 2**31)
        ids: list[int] = []
        logprobs, versions = [], []
        while len(ids) < request.sampling.max_tokens:
            if self._closed:
                raise RuntimeError("closed")
            time.sleep(self._pause)
            with self._lock:
                held = self._source._weights()
                logits = held.model(torch.tensor([[*prompt, *ids]])).logits[0, -1]
                logp = logits.float().log_softmax(-1)
                token = int(torch.multinomial(logp.exp(), 1, generator=chance))
                ids.append(token)
                logprobs.append(float(logp[token]))
                versions.append(held.policy_version)
            if token in request.eos_token_ids:
                break
        return Completion(
            token_ids=tuple(ids),
            logprobs=tuple(logprobs),
            finish_reason="stop" if ids[-1] in request.eos_token_ids else "length",
            policy_versions=tuple(versions),
        )


IN_FLIGHT = {"steps": 5, "ahead_steps": 2, "ahead_in_flight": True, "group_size": 2}


@pytest.mark.parametrize("dynamic", [None, {"max_rounds": 3}], ids=["plain", "dynamic"])
def test_weights_change_in_flight_and_every_token_knows_its_own(
    make_run: MakeRun, dynamic: dict[str, int] | None
) -> None:
    run, recorder = recorded(
        make_run,
        generator=TokenByToken(pause=0.002),
        rewards=[seldom],
        train={**IN_FLIGHT, "dynamic_sampling": dynamic},
        optimizer={"learning_rate": 0.02},
    )
    history = train(run).history
    assert dynamic is None or max(step["sampling/rounds"] for step in history) > 1
    rollouts = [r for step in recorder.rollouts for r in step]
    # Further rounds take the time in which weights could have changed under the next steps.
    assert dynamic or any(len(r.spans) > 1 for r in rollouts)
    assert all(step["sampling/staleness/max"] <= 2 for step in history)
    other = make_run(train={**AHEAD, "schedule": "synchronous"})
    other.policy.prepare(optimizer_steps=1, temperature=1.0, tokens_per_microbatch=1000)
    computed = {}
    for version, weights in recorder.weights.items():
        other.policy.model.load_state_dict(weights)
        computed[version] = [x.tolist() for x in other.policy.logprobs(rollouts)]
    for i, rollout in enumerate(rollouts):
        start = 0
        for span in rollout.spans:
            assert span.policy_version is not None
            end = start + len(span.token_ids)
            expected = computed[span.policy_version][i][start:end]
            assert span.logprobs == pytest.approx(expected, abs=1e-4)
            start = end


def test_asynchronous_runs_resume_without_a_prompt_skipped_or_repeated(
    make_run: MakeRun, tmp_path: Path, list_task: Any
) -> None:
    class Fails:
        @hookimpl
        def grpo_rollouts_scored(self, event: RolloutsScored) -> None:
            if event.step == 3:
                raise OSError("power cut")

    task = list_task([f"{i}?" for i in range(10)])
    parts = {"task": task, "train": IN_FLIGHT, "checkpoints": CheckpointSettings(every_steps=1)}
    taken: list[tuple[str, ...]] = []
    for broken in (True, False):
        run, recorder = recorded(
            make_run, generator=TokenByToken(), **parts, observers=[Fails()] if broken else []
        )
        if broken:
            with pytest.raises(PluginError, match="power cut"):
                train(run, resume="newest")
        else:
            train(run, resume="newest")
        # The third step was not trained on when the power went.
        for rollouts in recorder.rollouts[: 3 if broken else None]:
            taken.append(tuple(dict.fromkeys(r.prompt.id for r in rollouts)))
    ids = [[p.id for p in run.prompts.at(step)] for step in range(5)]
    assert [list(step) for step in taken] == ids


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"generator": HFGenerator()}, "no weights of its own"),
        ({"train": {"ahead_in_flight": True}}, "cannot take new weights while it samples"),
        ({"loss": Dapo(DapoConfig()), "loss_needs": frozenset()}, "takes no ratio"),
    ],
)
def test_what_cannot_work_ahead_is_refused(
    make_run: MakeRun, changes: dict[str, Any], expected: str
) -> None:
    needs = changes.pop("loss_needs", None)
    run, _ = recorded(make_run, **changes)
    if needs is not None:
        run.needs = needs
    with pytest.raises(ConfigError, match=expected):
        train(run)


def test_settings_that_would_do_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="have no effect without schedule: ahead"):
        TrainSettings(steps=1, ahead_steps=2)
    with pytest.raises(ValueError, match="further behind and no faster"):
        TrainSettings(steps=1, schedule="ahead", ahead_steps=2)
