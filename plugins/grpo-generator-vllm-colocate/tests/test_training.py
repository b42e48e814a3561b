"""Runs with a real engine in the process: whole ones, and with planted faults."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from grpo_core import load_run, train
from grpo_core.demo import checkpoint
from grpo_core.errors import ConfigError, SyncError
from grpo_generator_vllm_colocate import VLLMColocateGenerator, ways
from grpo_generator_vllm_colocate.engine import Engine
from grpo_generator_vllm_server import request as requests
from grpo_generator_vllm_server import weights

pytestmark = pytest.mark.vllm

LORA = {"lora": {"r": 4}}


@pytest.fixture
def write_config(tmp_path: Path, engine_options: dict[str, Any]) -> Callable[..., Path]:
    prompts = tmp_path / "prompts.jsonl"
    # Longer than a block of the prefix cache (128 tokens on a CPU), and the same in every step.
    texts = [f"{n} +1 " * 40 + "mod 10=?" for n in range(4)]
    lines = [json.dumps({"prompt": text, "answer": "1"}) for text in texts]
    prompts.write_text("\n".join(lines))

    def write(generator: dict[str, Any], **changes: Any) -> Path:
        long = changes.pop("long", False)
        config = {
            "model": {"path": str(checkpoint("habit")), "threads": 1, **changes.pop("model", {})},
            "task": {"name": "dataset", "path": str(prompts)} if long else "arithmetic",
            "train": {
                "steps": 3,
                "prompts_per_step": 4,
                "group_size": 4,
                "seed": 1,
                **changes.pop("train", {}),
            },
            "sampling": {"max_tokens": 40},
            # A rate at which one step is seen: the bound is 0.05 nats per token.
            "optimizer": {"learning_rate": changes.pop("learning_rate", 2e-2)},
            "loss": "dapo",
            "rewards": ["repetition-penalty"] if long else ["exact-answer"],
            "observers": ["jsonl"],
            "generator": {"name": "vllm-colocate", **engine_options, **generator},
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


def old_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head stays as it was at the start."""
    with_head = weights.with_head
    kept: list[torch.Tensor] = []

    def stale(update: Any) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in with_head(update):
            if name == "lm_head.weight" and not kept:
                kept.append(tensor.detach().clone())
            yield name, kept[0] if name == "lm_head.weight" else tensor

    monkeypatch.setattr(ways, "with_head", stale)
    monkeypatch.setattr(weights, "with_head", stale)


def old_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine is given the first weights again and again."""
    with_head = weights.with_head
    kept: list[tuple[str, torch.Tensor]] = []

    def stale(update: Any) -> Iterator[tuple[str, torch.Tensor]]:
        if not kept:
            kept.extend((name, t.detach().clone()) for name, t in with_head(update))
        return iter(kept)

    monkeypatch.setattr(ways, "with_head", stale)
    monkeypatch.setattr(weights, "with_head", stale)


def old_prefixes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and values of the old weights stay in the prefix cache."""
    monkeypatch.setattr(Engine, "forget_prefixes", lambda self: None)


def no_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    """The adapter is not loaded, and the engine says that it was."""
    monkeypatch.setattr(Engine, "add_adapter", lambda self, name, folder: setattr(self, "n", name))
    monkeypatch.setattr(Engine, "adapters", lambda self: {self.n})


def old_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first adapter comes again under the new name."""
    write, kept = ways.write_adapter, []

    def write_first(folder: Path, update: Any) -> None:
        if kept:
            shutil.copytree(kept[0], folder)
        else:
            write(folder, update)
            kept.append(shutil.copytree(folder, folder.parent.with_name(f"{folder.name}-kept")))

    monkeypatch.setattr(ways, "write_adapter", write_first)


def other_temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine samples at twice the temperature."""
    fields = requests.sampling_fields

    def hotter(*arguments: Any) -> dict[str, Any]:
        found = fields(*arguments)
        return {**found, "temperature": found["temperature"] * 2}

    monkeypatch.setattr(requests, "sampling_fields", hotter)


def old_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """The generator says that it holds the version before."""
    sync = VLLMColocateGenerator.sync
    monkeypatch.setattr(VLLMColocateGenerator, "sync", lambda self, u: sync(self, u) - 1)


def other_alpha(monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration beside the matrices changes before vLLM reads it. A new adapter adds
    nothing, however it is scaled."""
    write = ways.write_adapter

    def changed(folder: Path, update: Any) -> Any:
        sent = write(folder, update)
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"lora_alpha": 99}))
        return sent

    monkeypatch.setattr(ways, "write_adapter", changed)


TURNS = {"rope_parameters": {"rope_type": "default", "rope_theta": 1234.0}}


def other_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's positions turn otherwise."""


def other_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine is started with another model of the same shapes."""


@pytest.mark.parametrize(
    ("plant", "model", "generator", "steps", "said"),
    [
        (old_head, {}, {}, 1, r"lm_head\.weight is about to be given away"),
        (old_weights, {}, {}, 1, r"embed_tokens\.weight is about to be given away"),
        (old_prefixes, {}, {}, 1, "sampler and trainer disagree"),
        (no_adapter, LORA, {}, 0, "vLLM has no adapter"),
        (old_adapter, LORA, {}, 1, r"holds the adapter .*\.v0, not .*\.v1"),
        (other_base, LORA, {"model": str(checkpoint("plain"))}, 0, "are not those of the policy's"),
        (other_alpha, LORA, {}, 1, "28 of the adapter's 28 matrices are not in use"),
        (other_turns, {}, {"engine": {"hf_overrides": TURNS}}, 0, "computes with rope_parameters"),
        (other_temperature, {}, {}, 0, "sampler and trainer disagree"),
        (old_version, {}, {}, 0, "holds policy version -1"),
    ],
)
def test_a_planted_fault_stops_the_run_at_the_first_step_that_has_it(
    plant, model, generator, steps: int, said: str, write_config, monkeypatch, tmp_path
) -> None:
    plant(monkeypatch)
    long = plant is old_prefixes
    run = load_run(write_config(generator, model=model, long=long))
    with pytest.raises((SyncError, ConfigError), match=said):
        train(run)
    found = steps_of(tmp_path / "run")
    assert len(found) == steps
    assert all(s["ratio/sampler_mismatch_max"] < 1e-3 for s in found)


@pytest.mark.parametrize("model", [{}, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("long", [False, True], ids=["short", "long"])
def test_without_a_fault_sampler_and_trainer_agree(
    model, long: bool, write_config, tmp_path: Path
) -> None:
    train(load_run(write_config({}, model=model, long=long)))
    found = steps_of(tmp_path / "run")
    assert len(found) == 3
    assert max(s["ratio/sampler_mismatch_max"] for s in found) < 1e-3
    assert max(abs(s["ratio/sampler_mismatch"]) for s in found) < 1e-5
    assert found[0]["optim/grad_norm"] > 0, "the policy has not moved, and nothing was tested"
