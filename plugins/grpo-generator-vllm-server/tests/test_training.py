"""Runs through a real engine: whole, with a server or trainer killed, with planted faults."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from grpo_core import load_run, train
from grpo_core.errors import SyncError
from grpo_generator_vllm_server import VLLMServerGenerator, weights
from grpo_generator_vllm_server import request as requests
from grpo_generator_vllm_server.launch import Launched

pytestmark = pytest.mark.vllm

WAIT = 600
"""Seconds for an engine to start on a busy machine; measured 25 with two cores."""


@pytest.fixture
def write_config(tmp_path: Path, model_folder: Path) -> Callable[..., Path]:
    def write(generator: dict[str, Any], **changes: Any) -> Path:
        config = {
            "model": {"path": str(model_folder), **changes.pop("model", {})},
            "task": "arithmetic",
            "train": {
                "steps": 3,
                "prompts_per_step": 4,
                "group_size": 4,
                "seed": 1,
                **changes.pop("train", {}),
            },
            "sampling": {"max_tokens": 40},
            "optimizer": {"learning_rate": changes.pop("learning_rate", 4e-4)},
            "loss": "dapo",
            "rewards": ["exact-answer"],
            "observers": ["jsonl"],
            "generator": {"name": "vllm-server", **generator},
            "output": str(tmp_path / "run"),
        }
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(config | changes))
        return path

    return write


def steps_of(run: Path) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [entry for line in lines if (entry := json.loads(line))["event"] == "step"]


def start(config: Path) -> subprocess.Popen[bytes]:
    log = config.with_suffix(".log").open("wb")
    return subprocess.Popen(
        [sys.executable, "-m", "grpo_core.cli", "train", str(config)], stdout=log, stderr=log
    )


def wait_until(condition: Callable[[], Any], config: Path, seconds: float = WAIT) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s:\n{config.with_suffix('.log').read_text()}")


def engines(trainer: psutil.Process) -> list[psutil.Process]:
    return [p for p in trainer.children(recursive=True) if p.is_running()]


def test_a_lora_run_survives_the_death_of_its_server(
    write_config, engine_settings, tmp_path: Path
) -> None:
    config = write_config(
        {"launch": engine_settings}, model={"lora": {"r": 8}}, train={"steps": 40}
    )
    trainer = start(config)
    try:
        wait_until(lambda: len(steps_of(tmp_path / "run")) >= 2, config)
        (api,) = [
            p
            for p in engines(psutil.Process(trainer.pid))
            if "vllm.entrypoints.openai.api_server" in p.cmdline()
            and "grpo_vllm_supervisor" not in " ".join(p.cmdline())
            and p.parent() is not None
            and "grpo_vllm_supervisor" in " ".join(p.parent().cmdline())
        ]
        family = [api, *api.children(recursive=True)]
        api.kill()
        before = len(steps_of(tmp_path / "run"))
        assert before < 40
        wait_until(lambda: len(steps_of(tmp_path / "run")) > before + 2, config)
        # A killed API server leaves its engine and workers behind if nobody looks.
        assert not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        trainer.send_signal(signal.SIGTERM)
        trainer.wait(WAIT)
    finally:
        trainer.kill()
    said = config.with_suffix(".log").read_text()
    assert "is started again" in said
    assert "holds the weights again" in said or "is back" in said
    steps = steps_of(tmp_path / "run")
    assert [s["step"] for s in steps] == list(range(len(steps)))
    assert max(s["ratio/sampler_mismatch_max"] for s in steps) < 1e-3
    assert max(s["ratio/max"] for s in steps) == pytest.approx(1, abs=1e-3)


def test_a_killed_trainer_leaves_no_process(write_config, engine_settings, tmp_path: Path) -> None:
    config = write_config({"launch": engine_settings}, train={"steps": 1000})
    trainer = start(config)
    try:
        wait_until(lambda: len(steps_of(tmp_path / "run")) >= 1, config)
        family = engines(psutil.Process(trainer.pid))
        assert len(family) >= 3
    finally:
        os.kill(trainer.pid, signal.SIGKILL)
    trainer.wait()
    wait_until(lambda: not [p for p in family if p.is_running()], config, 20)
    assert max(s["ratio/sampler_mismatch_max"] for s in steps_of(tmp_path / "run")) < 1e-3


def old_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is told that the first weights are the newest ones."""
    first: list[Path] = []
    write = weights.write_weights

    def write_first(folder: Path, update: Any, dtype: str | None) -> None:
        import shutil

        if not first:
            write(folder, update, dtype)
            kept = folder.parent.parent / "kept"
            shutil.copytree(folder, kept)
            first.append(kept)
        else:
            shutil.copytree(first[0], folder)

    monkeypatch.setattr("grpo_generator_vllm_server.sync.write_weights", write_first)


def old_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head is sent as it was at the start."""
    with_head = weights.with_head
    kept: list[Any] = []

    def stale(update: Any) -> Any:
        for name, tensor in with_head(update):
            if name == "lm_head.weight":
                if not kept:
                    kept.append(tensor.detach().clone())
                yield name, kept[0]
            else:
                yield name, tensor

    monkeypatch.setattr(weights, "with_head", stale)


def other_temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server samples at twice the temperature."""
    body = requests.body

    def hotter(*arguments: Any, **options: Any) -> dict[str, Any]:
        found = body(*arguments, **options)
        return {**found, "temperature": found["temperature"] * 2}

    monkeypatch.setattr(requests, "body", hotter)


def old_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """The generator says that it sampled with the version before."""
    sync = VLLMServerGenerator.sync
    monkeypatch.setattr(VLLMServerGenerator, "sync", lambda self, u: sync(self, u) - 1)


@pytest.mark.parametrize(
    ("plant", "steps", "said"),
    [
        (old_weights, 1, r"holds the weights .*\.v0, not .*\.v1"),
        (old_head, 1, "1 of 47 tensors hold other numbers than the policy's, such as lm_head"),
        (other_temperature, 0, "sampler and trainer disagree"),
        (old_version, 0, "holds policy version -1"),
        (None, 3, None),
    ],
)
def test_a_planted_fault_stops_the_run_at_the_first_step_that_has_it(
    plant, steps: int, said: str | None, write_config, engine: Launched, monkeypatch, tmp_path
) -> None:
    monkeypatch.setenv("GRPO_VLLM_TOKEN", engine.plan.token)
    if plant is not None:
        plant(monkeypatch)
    # A rate at which one step is seen: the bound is 0.05 nats per token.
    config = write_config({"urls": [engine.plan.url], "sync": "file"}, learning_rate=2e-2)
    run = load_run(config)
    if said is None:
        train(run)
    else:
        with pytest.raises(SyncError, match=said):
            train(run)
    found = steps_of(tmp_path / "run")
    assert len(found) == steps
    assert all(s["ratio/sampler_mismatch_max"] < 1e-3 for s in found)


def test_weights_change_while_the_next_steps_are_sampled(
    write_config, engine: Launched, monkeypatch, tmp_path: Path
) -> None:
    """Sampling ahead, in flight: completions of several versions, each token by its own."""
    monkeypatch.setenv("GRPO_VLLM_TOKEN", engine.plan.token)
    config = write_config(
        {"urls": [engine.plan.url], "sync": "broadcast"},
        train={"steps": 4, "schedule": "ahead", "ahead_in_flight": True, "ahead_steps": 2},
        # So hot that few completions end by themselves: sampling takes longer than an update.
        sampling={"max_tokens": 300, "temperature": 1.5},
    )
    train(load_run(config))
    steps = steps_of(tmp_path / "run")
    assert [s["step"] for s in steps] == list(range(4))
    # Old log-probs are the sampler's; the weights of now are compared by tokens of their own.
    assert max(s["ratio/sampler_mismatch_max"] for s in steps) < 1e-3
    assert max(s["sampling/staleness/max"] for s in steps) <= 2
    assert max(s["sampling/staleness/mean"] for s in steps) > 0
    # How many depends on the machine; test_in_flight sees to it that there are some.
    assert all("sync/interrupted" in s for s in steps)
    assert {s["sync/servers"] for s in steps} == {1}
