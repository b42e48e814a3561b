"""Checkpoints: when they are written, which are kept, and what is done about bad ones."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from grpo_core import CheckpointSettings, Policy, Run, hookimpl, train
from grpo_core.errors import CheckpointError, ConfigError, PluginError
from grpo_core.trainer.checkpoints.packing import pack, unpack
from grpo_core.types import Abstained, Prompt, Rollout, Span

MakeRun = Callable[..., Run]


def settings(**changes: Any) -> CheckpointSettings:
    return CheckpointSettings(**{"every_steps": 1, "every_minutes": 0, "keep_last": 9, **changes})


def weights(run: Run) -> list[torch.Tensor]:
    return [p.detach().clone() for p in run.policy.model.parameters()]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def there(run: Run) -> list[str]:
    return sorted(p.name for p in (run.output / "checkpoints").iterdir())


@pytest.fixture
def go(make_run: MakeRun) -> Callable[..., Run]:
    """Train three steps, or resume; returns the run."""

    def train_it(
        resume: str | None = None, *, accept_changes: bool = False, steps: int = 3, **changes: Any
    ) -> Run:
        changes.setdefault("checkpoints", settings())
        changes["train"] = {"steps": steps, **changes.get("train", {})}
        run = make_run(**changes)
        train(run, resume=resume, accept_changes=accept_changes)
        return run

    return train_it


class At:
    """Calls a function at the beginning of a step."""

    def __init__(self, step: int, function: Callable[[], object]) -> None:
        self._step, self._function = step, function

    @hookimpl
    def grpo_rollouts_scored(self, event: Any) -> None:
        if event.step == self._step:
            self._function()


def fails() -> None:
    raise OSError("power cut")


# -- damage ----------------------------------------------------------------------------------


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
@pytest.mark.parametrize("name", ["index.json", "state.json", "state.safetensors"])
def test_a_damaged_newest_gives_way_to_the_one_before(
    go: Callable[..., Run],
    tmp_path_factory: pytest.TempPathFactory,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], None],
    name: str,
) -> None:
    whole = go()
    newest = whole.output / "checkpoints" / "step-000003"
    damage(newest / name)
    resumed = go("newest")
    assert f"{newest} is damaged and left out: {name}" in caplog.text
    assert same(weights(resumed), weights(whole))
    assert there(resumed) == ["step-000001", "step-000002", "step-000003"]


def test_nothing_whole_is_an_error_and_starts_nothing_anew(go: Callable[..., Run]) -> None:
    whole = go(checkpoints=settings(keep_last=1))
    flip(whole.output / "checkpoints" / "step-000003" / "state.json")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole"):
        go("newest")
    assert there(whole) == ["step-000003"]


def test_a_newer_format_is_refused_by_its_number(
    go: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("grpo_core.trainer.checkpoints.folder.FORMAT", 7)
        go()
    with pytest.raises(CheckpointError, match=r"has format 7.* reads format 1"):
        go("newest")


def test_a_named_one_sets_later_ones_aside(go: Callable[..., Run]) -> None:
    whole = go()
    with pytest.raises(CheckpointError, match="there: step-000001, step-000002, step-000003"):
        go("step-4")
    with pytest.raises(PluginError, match="power cut"):
        go("step-000001", observers=[At(1, fails)])
    assert there(whole) == [".step-000002.aside", ".step-000003.aside", "step-000001"]
    resumed = go("newest")
    assert same(weights(resumed), weights(whole))
    assert there(resumed) == ["step-000001", "step-000002", "step-000003"]


# -- another run -------------------------------------------------------------------------------


def test_a_changed_run_is_explained_and_refused(
    go: Callable[..., Run], list_task: Any, caplog: pytest.LogCaptureFixture
) -> None:
    loss = {"role": "loss", "name": "dapo", "distribution": "grpo-losses", "version": "0.1.0"}
    go(steps=2, manifest=[loss])
    changed: dict[str, Any] = {
        "steps": 3,
        "optimizer": {"learning_rate": 0.5},
        "manifest": [{**loss, "version": "0.2.0"}],
        "task": list_task(["a?"]),
    }
    with pytest.raises(CheckpointError) as refused:
        go("newest", **changed)
    for line in (
        "optimizer.learning_rate: 0.001 then, 0.5 now",
        "train.steps: 2 then, 3 now",
        "loss 'dapo': grpo-losses 0.1.0 then, grpo-losses 0.2.0 now",
        "training prompts: 3 then, 1 now",
        "--resume-changed",
    ):
        assert line in str(refused.value)
    run = go("newest", accept_changes=True, **changed)
    assert run.result().steps_done == 3
    assert "going on all the same" in caplog.text


def test_what_only_watches_may_change(go: Callable[..., Run]) -> None:
    go(config={"train": {"seed": 0}, "output": "a", "observers": ["x"], "checkpoints": None})
    go("newest", config={"train": {"seed": 0}, "output": "b", "observers": [], "savers": []})


def test_another_model_does_not_fit(go: Callable[..., Run]) -> None:
    go()
    with pytest.raises(ConfigError, match="does not fit the policy"):
        go("newest", accept_changes=True, model={"lora": {"r": 2}})


def test_other_data_of_the_same_size_are_seen(go: Callable[..., Run], list_task: Any) -> None:
    go(steps=2, task=list_task(["a?", "b?", "c?"]))
    go("newest", steps=2, task=list_task(["a?", "b?", "c?"]))
    with pytest.raises(CheckpointError, match=r"digest of 1,000 training prompts: \w{16} then"):
        go("newest", steps=2, task=list_task(["a?", "b?", "d?"]))


def test_another_base_model_under_an_adapter_is_seen(
    go: Callable[..., Run], tiny_model: Path, tmp_path: Path
) -> None:
    """Of the same shapes, so that nothing else would tell."""
    shutil.copytree(tiny_model, tmp_path / "other")
    (weights,) = (tmp_path / "other").glob("*.safetensors")
    tensors = load_file(weights)
    name = next(name for name in tensors if "down_proj" in name)
    tensors[name] += 1e-3
    save_file(tensors, weights, metadata={"format": "pt"})
    lora = {"lora": {"r": 2}}
    go(steps=2, model=lora)
    go("newest", steps=2, model=lora)
    with pytest.raises(CheckpointError, match="weights that are not trained"):
        go("newest", steps=2, model={**lora, "path": str(tmp_path / "other")})


def test_another_number_of_threads_is_told(
    go: Callable[..., Run], caplog: pytest.LogCaptureFixture
) -> None:
    go(model={"threads": 2})
    go("newest", accept_changes=True, model={"threads": 1})
    assert "the run had 2 CPU threads and has 1 now" in caplog.text


# -- when, and which are kept ------------------------------------------------------------------


def test_by_minutes_and_at_the_end(go: Callable[..., Run]) -> None:
    assert there(go(checkpoints=settings(every_steps=0, every_minutes=1e-9))) == [
        "step-000001",
        "step-000002",
        "step-000003",
    ]
    shutil.rmtree(go("newest").output)
    assert there(go(checkpoints=settings(every_steps=2))) == ["step-000002", "step-000003"]


def test_by_epochs(go: Callable[..., Run]) -> None:
    """Three prompts, two a step: an epoch ends within step 2, two within step 3."""
    run = go(steps=5, checkpoints=settings(every_steps=0, every_epochs=1))
    assert there(run) == ["step-000002", "step-000003", "step-000005"]


@pytest.mark.parametrize(
    ("mode", "kept"),
    [("max", ["step-000002", "step-000004"]), ("min", ["step-000001", "step-000004"])],
)
def test_the_best_and_the_newest_are_kept(
    go: Callable[..., Run], mode: str, kept: list[str]
) -> None:
    values = iter([0.1, 0.9, 0.4, 0.5])

    class Score:
        name = "score"
        needs_batch = True
        value = 0.0

        def score(self, request: Any) -> Any:
            from grpo_core.types import Value

            self.value = next(values)
            return [Value(value=self.value + i % 2) for i in range(len(request.rollouts_B))]

    best = {"metric": "reward/mean", "mode": mode}
    run = go(steps=4, rewards=[Score()], checkpoints=settings(keep_last=1, keep_best=best))
    assert there(run) == kept


def test_a_metric_that_nobody_has_keeps_the_newest(
    go: Callable[..., Run], caplog: pytest.LogCaptureFixture
) -> None:
    run = go(checkpoints=settings(keep_last=1, keep_best={"metric": "eval/nothing"}))
    assert there(run) == ["step-000003"]
    assert "no checkpoint has a value of keep_best.metric 'eval/nothing'" in caplog.text


def test_sigterm_leaves_a_checkpoint(go: Callable[..., Run], tmp_path: Path) -> None:
    expected = weights(go(output=tmp_path / "whole"))
    stop = At(0, lambda: os.kill(os.getpid(), signal.SIGTERM))
    seldom = settings(every_steps=0)
    stopped = go(observers=[stop], checkpoints=seldom)
    assert stopped.result().status == "interrupted"
    assert there(stopped) == ["step-000001"]
    assert same(weights(go("newest", checkpoints=seldom)), expected)


def test_an_error_before_the_update_leaves_a_checkpoint(
    go: Callable[..., Run], make_run: MakeRun, tmp_path: Path
) -> None:
    expected = weights(go(output=tmp_path / "whole"))
    seldom = settings(every_steps=0)
    with pytest.raises(PluginError, match="power cut"):
        go(observers=[At(2, fails)], checkpoints=seldom)
    assert there(make_run()) == ["step-000002"]
    assert same(weights(go("newest", checkpoints=seldom)), expected)


def test_an_error_between_two_updates_leaves_none(
    go: Callable[..., Run], make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Policy.step

    def fails_third(policy: Policy) -> Any:
        if policy.version == 3:
            fails()
        return step(policy)

    monkeypatch.setattr(Policy, "step", fails_third)
    with pytest.raises(OSError, match="power cut"):
        go(train={"minibatches_per_step": 2}, checkpoints=settings(every_steps=0))
    assert not (make_run().output / "checkpoints").exists()


def test_a_finished_run_stays_as_it_is(go: Callable[..., Run]) -> None:
    whole = go()
    before = {p: p.read_bytes() for p in whole.output.rglob("*.safetensors")}
    again = go("newest")
    assert again.result().steps_done == 3
    assert same(weights(again), weights(whole))
    assert {p: p.read_bytes() for p in whole.output.rglob("*.safetensors")} == before


# -- what cannot be written --------------------------------------------------------------------


def limit_file_size(size: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))


@pytest.fixture
def unlimited_again() -> Any:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(
    go: Callable[..., Run], unlimited_again: None, caplog: pytest.LogCaptureFixture
) -> None:
    observers = [At(1, lambda: limit_file_size(100_000)), At(3, lambda: limit_file_size(-1))]
    run = go(steps=5, observers=observers)
    assert there(run) == ["step-000001", "step-000004", "step-000005"]
    for step in (2, 3):
        assert f"the checkpoint of step {step} could not be written" in caplog.text


def test_a_disk_that_stays_full_stops_the_run(
    go: Callable[..., Run], make_run: MakeRun, unlimited_again: None
) -> None:
    with pytest.raises(CheckpointError, match="step 4 could not be written"):
        go(steps=9, observers=[At(1, lambda: limit_file_size(100_000))])
    assert there(make_run()) == ["step-000001"]
    limit_file_size(-1)
    assert go("newest", steps=9).result().steps_done == 9


def test_a_state_that_cannot_be_written_is_said_before_the_start(go: Callable[..., Run]) -> None:
    class Odd(At):
        def state_dict(self) -> dict[str, Any]:
            return {"seen": {1, 2}}

    with pytest.raises(ConfigError, match=r"observer/0/.*Odd/seen is a set"):
        go(observers=[Odd(0, fails)])


def test_a_sharded_policy_is_refused(
    go: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Policy, "sharded", True)
    with pytest.raises(ConfigError, match="sharded"):
        go()
    assert go(checkpoints=None).result().steps_done == 3


# -- packing -----------------------------------------------------------------------------------


def test_what_is_packed_comes_back_equal() -> None:
    prompt = Prompt(id="p/1", content="a", columns={"anything": object()})
    span = Span(token_ids=(1, 2), logprobs=(-0.1, float("-inf")), policy_version=3)
    rollout = Rollout(
        prompt=prompt,
        prompt_ids=(5,),
        group=1,
        sample=2,
        spans=(span,),
        text="\ud800",
        finish_reason="stop",
        extra={"$tensor": "no", "n": {3: (True, None, 2**70)}},
    )
    value = {"rollouts": [rollout], "why": Abstained(reason="x"), "t": torch.arange(3), "": 0.1}
    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps(pack(value, tensors, "state"), allow_nan=False)
    assert list(tensors) == ["state/t"]
    back = unpack(json.loads(text), tensors, {"p/1": prompt}.__getitem__)
    assert torch.equal(back.pop("t"), value.pop("t"))
    assert back == value
