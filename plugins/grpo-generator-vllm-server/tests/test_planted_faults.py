"""Each way in which sampler and trainer come apart, planted in runs through real engines: the first
step that has it must be the last."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from grpo_core import load_run, train
from grpo_core.errors import SyncError
from grpo_generator_vllm_server.client import Server
from grpo_generator_vllm_server.launch import Launched
from grpo_generator_vllm_server.sync import ByAdapter, ByFile

pytestmark = pytest.mark.vllm

REWARD = """\
def evenness(prompts, completions, completion_ids, **columns):
    return [sum(i % 2 == 0 for i in ids) / len(ids) for ids in completion_ids]
"""
"""Differs between any two completions, so that every step moves the weights."""
DISAGREE = "sampler and trainer disagree"


@pytest.fixture
def write_config(
    tmp_path: Path, model_folder: Path, engine: Launched, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """A run with a rate at which one step is seen: the bound is 0.05 nats per token."""
    monkeypatch.setenv("GRPO_VLLM_TOKEN", engine.plan.token)
    (tmp_path / "planted_reward.py").write_text(REWARD)
    monkeypatch.syspath_prepend(tmp_path)

    def write(*servers: Launched, sync: str, steps: int = 3, **changes: Any) -> Path:
        urls = [server.plan.url for server in servers]
        config = {
            "model": {"path": str(servers[0].plan.model)},
            "task": "arithmetic",
            "train": {"steps": steps, "prompts_per_step": 4, "group_size": 4, "seed": 1},
            "sampling": {"max_tokens": 24},
            "optimizer": {"learning_rate": 5e-2},
            "loss": "dapo",
            "rewards": [{"name": "planted_reward:evenness"}],
            "observers": ["jsonl"],
            "generator": {
                "name": "vllm-server",
                "urls": urls,
                "sync": sync,
                "recover_seconds": 0,
            },
            "output": str(tmp_path / "run"),
        }
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(config | changes))
        return path

    return write


def steps_before_the_stop(config: Path, *, said: str = DISAGREE, resume: bool = False) -> int:
    """How many steps the run has made when it is stopped, all of them sound."""
    run = load_run(config)
    with pytest.raises(SyncError, match=said):
        train(run, resume="newest" if resume else None, accept_changes=resume)
    path = run.output / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [row for row in map(json.loads, lines) if "ratio/sampler_mismatch_max" in row]
    assert all(row["ratio/sampler_mismatch_max"] < 1e-3 for row in rows)
    return len(rows)


def test_an_adapter_that_is_not_loaded(write_config, adapter_engine, monkeypatch) -> None:
    """Requests name the base. A new adapter adds nothing, so the first update shows it."""
    monkeypatch.setattr(ByAdapter, "served_as", lambda self, facts, published: facts.served)
    config = write_config(
        adapter_engine,
        sync="adapter",
        model={"path": str(adapter_engine.plan.model), "lora": {"r": 8}},
    )
    assert steps_before_the_stop(config) == 1


def test_an_old_adapter_under_a_new_name(write_config, adapter_engine, monkeypatch) -> None:
    import grpo_generator_vllm_server.sync as sync_module

    write = sync_module.write_adapter
    first: list[Path] = []

    def stale(folder: Path, update: Any) -> Any:
        sent = write(folder, update)
        if first:
            shutil.rmtree(folder)
            shutil.copytree(first[0], folder)
        else:
            first.append(Path(shutil.copytree(folder, folder.parent.parent / "kept")))
        return sent

    monkeypatch.setattr(sync_module, "write_adapter", stale)
    config = write_config(
        adapter_engine,
        sync="adapter",
        model={"path": str(adapter_engine.plan.model), "lora": {"r": 8}},
    )
    assert steps_before_the_stop(config, said=r"holds the adapter .*\.v0, not .*\.v1") == 1


def test_a_prefix_cache_that_is_not_reset(
    write_config, engine, monkeypatch, tmp_path: Path
) -> None:
    """Keys and values of the old weights, for a prompt that is longer than a block of 128."""
    post = Server.post

    def keeps(self: Server, path: str, body: Any, *, seconds: float) -> Any:
        if path == "/reset_prefix_cache":
            return {"success": True}
        if path.startswith("/pause"):
            path += "&clear_cache=false"
        return post(self, path, body, seconds=seconds)

    monkeypatch.setattr(Server, "post", keeps)
    row = {"prompt": "1 +2 *3 -4 " * 40 + "mod 10=?", "answer": "3"}
    (tmp_path / "long.jsonl").write_text(f"{json.dumps(row)}\n" * 8)
    # Tokens of the completion see the new weights, so the step must be larger to be seen.
    config = write_config(
        engine,
        sync="file",
        task={"name": "dataset", "path": str(tmp_path / "long.jsonl")},
        optimizer={"learning_rate": 0.3},
    )
    assert steps_before_the_stop(config) == 1


def test_one_replica_of_two_that_is_behind(
    write_config, engine, adapter_engine, monkeypatch
) -> None:
    """The second has what the run began with, and says that it holds each version."""
    push, held = ByFile.push, ByFile.held
    behind = adapter_engine.plan.url

    def pushed(self: ByFile, server: Server, published: Any, seconds: float) -> int:
        if server.url == behind:
            return int(published.policy_version)
        return push(self, server, published, seconds)

    def said(self: ByFile, server: Server, published: Any) -> int | None:
        if server.url == behind:
            return int(published.policy_version)
        return held(self, server, published)

    monkeypatch.setattr(ByFile, "push", pushed)
    monkeypatch.setattr(ByFile, "held", said)
    base = {"path": str(adapter_engine.plan.model)}
    config = write_config(engine, adapter_engine, sync="file", model=base)
    assert steps_before_the_stop(config) == 1


def test_a_server_with_its_initial_weights_after_a_resume(
    write_config, engine, make_generator, load_policy, monkeypatch
) -> None:
    """As if it had been restarted, and the resumed run took it for synced."""
    train(load_run(write_config(engine, sync="file", steps=2)))
    initial = make_generator(sync="file")
    initial.sync(load_policy()[1](0))
    version = lambda self, server, published, *_: int(published.policy_version)  # noqa: E731
    monkeypatch.setattr(ByFile, "push", version)
    monkeypatch.setattr(ByFile, "held", version)
    config = write_config(engine, sync="file", steps=4)
    assert steps_before_the_stop(config, resume=True) == 2


def test_a_server_with_another_base_of_the_same_shapes(
    write_config, adapter_engine, model_folder
) -> None:
    """An adapter travels alone; what it sits on is compared once."""
    config = write_config(
        adapter_engine, sync="adapter", model={"path": str(model_folder), "lora": {"r": 8}}
    )
    said = "tensors of the server's checkpoint are not those of the policy's base"
    assert steps_before_the_stop(config, said=said) == 0
