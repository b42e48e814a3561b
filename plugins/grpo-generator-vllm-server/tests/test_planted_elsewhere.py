"""Faults that are planted in the server, in its folder, and by its other clients, on real engines:
each is found when weights are given, or when the step that was sampled ends."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from grpo_core.errors import ConfigError, SyncError
from grpo_generator_vllm_server import VLLMServerGenerator, generator, launch, likeness
from grpo_generator_vllm_server.client import Server
from grpo_generator_vllm_server.launch import Launched

pytestmark = pytest.mark.vllm

LEFT_OUT = "of the adapter's 28 matrices are not in use in vLLM as the policy has them"
CLOSE = 1e-3
"""Nats, as in ``test_in_flight.py``."""


@pytest.fixture
def client(engine: Launched) -> Iterator[Callable[[Launched], Server]]:
    """Another one of a server, who knows the token."""
    made = []

    def make(launched: Launched) -> Server:
        made.append(Server(launched.plan.url, launched.plan.token))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture(scope="module")
def odd_engine(start_engine: Callable[..., Any]) -> Iterator[Launched]:
    """One that adapts queries only, and turns them otherwise."""
    overrides = {"rope_parameters": {"rope_type": "default", "rope_theta": 1234.0}}
    args = ("--lora-target-modules", "q_proj", "--hf-overrides", json.dumps(overrides))
    with start_engine(args=args) as launched:
        yield launched


# -- adapters ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"use_rslora": True, "lora_alpha": 24},
        {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"v_proj": 5}},
        {"layers_to_transform": [1], "target_modules": ["up_proj", "o_proj"]},
    ],
    ids=["rslora", "patterns", "one layer"],
)
def test_what_vllm_computes_as_peft_does_goes_alone(
    changes, adapter_engine, make_generator, load_policy, make_request, move, largest_difference
) -> None:
    from peft import LoraConfig, get_peft_model

    base, update = load_policy(folder=Path(adapter_engine.plan.model))
    config = LoraConfig(**{"r": 4, "target_modules": "all-linear", **changes})
    model: Any = get_peft_model(base, config)
    move(model, "lora_")
    found = make_generator(adapter_engine, sync="adapter")
    from dataclasses import replace

    found.sync(replace(update(0), model=model))
    request = make_request()
    assert largest_difference(model, request, list(found.generate(request))) < CLOSE


def edit_config(folder: Path, **changes: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def other_alpha(folder: Path) -> None:
    edit_config(folder, lora_alpha=99)


def edit_tensors(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def partly(tensors: dict[str, Any]) -> None:
    for name in [n for n in tensors if ".layers.1." in n]:
        del tensors[name]


def swapped(tensors: dict[str, Any]) -> None:
    for name in [n for n in tensors if ".layers.0." in n]:
        other = name.replace(".layers.0.", ".layers.1.")
        tensors[name], tensors[other] = tensors[other].clone(), tensors[name].clone()


@pytest.mark.parametrize(
    ("tamper", "said", "restored"),
    [
        (other_alpha, f"28 {LEFT_OUT}", "anew"),
        (lambda f: edit_config(f, use_rslora=True), f"28 {LEFT_OUT}", "anew"),
        (lambda f: edit_tensors(f, partly), f"7 {LEFT_OUT}", "anew"),
        (lambda f: edit_tensors(f, swapped), f"14 {LEFT_OUT}", "anew"),
        (other_alpha, "computes with other matrices", "in place"),
    ],
    ids=["alpha", "rslora", "partly", "swapped", "restored"],
)
def test_an_adapter_that_changes_between_check_and_load(
    tamper, said: str, restored: str, adapter_engine, make_generator, load_policy, move, monkeypatch
) -> None:
    """vLLM reads it by itself; what it has then is compared, whatever the folder says."""
    model, update = load_policy(lora_rank=8, folder=Path(adapter_engine.plan.model))
    move(model, "lora_")
    post = Server.post_for_text

    def meanwhile(self: Server, path: str, body: Any, *, seconds: float) -> str:
        if path != "/v1/load_lora_adapter":
            return post(self, path, body, seconds=seconds)
        folder = Path(body["lora_path"])
        kept = {file: file.read_bytes() for file in folder.iterdir()}
        tamper(folder)
        try:
            return post(self, path, body, seconds=seconds)
        finally:
            for file, data in kept.items():
                if restored == "anew":
                    file.unlink()  # vLLM has the other one mapped into its memory
                file.write_bytes(data)

    monkeypatch.setattr(Server, "post_for_text", meanwhile)
    with pytest.raises(SyncError, match=said):
        make_generator(adapter_engine, sync="adapter").sync(update(0))


def test_modules_that_the_server_does_not_adapt(
    odd_engine, make_generator, load_policy, move, monkeypatch
) -> None:
    monkeypatch.setattr(generator, "config_of", lambda model: {})
    model, update = load_policy(lora_rank=4)
    move(model, "lora_")
    with pytest.raises(SyncError, match="not in use in vLLM as the policy has them"):
        make_generator(odd_engine, sync="adapter").sync(update(0))


def test_another_client_puts_its_adapter_under_our_name(
    adapter_engine, make_generator, load_policy, make_request, move, client, tmp_path: Path
) -> None:
    model, update = load_policy(lora_rank=8, folder=Path(adapter_engine.plan.model))
    found = make_generator(adapter_engine, sync="adapter")
    found.sync(update(0))
    ours = found._published.folder
    move(model, "lora_")
    # In the folder too, so that all names are right.
    (ours / "adapter_model.safetensors").unlink()
    model.save_pretrained(ours)
    body = {"lora_name": ours.name, "lora_path": str(ours), "load_inplace": True}
    groups = found.generate(make_request())
    next(groups)
    client(adapter_engine).post_for_text("/v1/load_lora_adapter", body, seconds=60)
    with pytest.raises(SyncError, match="does another run use the same server"):
        list(groups)


# -- the server's own settings -------------------------------------------------------------------


def test_a_server_that_computes_otherwise(odd_engine, make_generator, load_policy) -> None:
    with pytest.raises(ConfigError, match=r"computes with rope_parameters .*1234\.0"):
        make_generator(odd_engine, sync="file").sync(load_policy()[1](0))


def test_engines_that_do_not_answer(
    start_engine, make_generator, load_policy, client, monkeypatch
) -> None:
    # As somebody else may have started it: here it would be refused at once.
    monkeypatch.setattr(launch, "REFUSED", {})
    with start_engine(args=("--data-parallel-size", "2")) as launched:
        assert len(client(launched).rpc("grpo_held", seconds=60)) == 1
        with pytest.raises(ConfigError, match="has 2 workers, of which 1 answer"):
            make_generator(launched, sync="file").sync(load_policy()[1](0))


def test_what_is_compared_is_there_to_compare(engine, make_generator, load_policy, client) -> None:
    """A comparison of settings that neither side names would pass anything."""
    model, _ = load_policy()
    ours = likeness.config_of(model)
    (theirs,) = client(engine).rpc("grpo_config", seconds=60)
    assert {"rope_parameters", "rms_norm_eps", "hidden_act", "layer_types"} <= ours.keys()
    assert ours.keys() <= theirs.keys()
    likeness.require_alike("it", theirs, ours)
    for name in ours:
        other = {**theirs, name: "another" if ours[name] is not None else None}
        if ours[name] is not None:
            with pytest.raises(ConfigError, match=f"it computes with {name} 'another'"):
                likeness.require_alike("it", other, ours)


# -- another client of the server ----------------------------------------------------------------


def reloads(server: Server, model: str) -> None:
    """As `reload_weights` of vLLM's own, by which neither mark nor version changes."""
    server.rpc("reload_weights", seconds=120)


def reloads_and_says_so(server: Server, model: str) -> None:
    server.rpc("reload_weights", seconds=120)
    server.post("/update_weight_version", {"new_version": "mine"}, seconds=60)


def sleeps(server: Server, model: str) -> None:
    """At level 2 the weights are gone, and what wakes up is whatever lay there."""
    server.rpc("sleep", seconds=120)
    server.rpc("wake_up", seconds=120)


def configures(server: Server, model: str) -> None:
    server.rpc("update_config", seconds=120, overrides={})


@pytest.mark.parametrize("meddle", [reloads, reloads_and_says_so, sleeps, configures])
def test_another_client_changes_the_weights_while_a_step_is_sampled(
    meddle: Callable[[Server, str], None],
    engine,
    make_generator: Callable[..., VLLMServerGenerator],
    load_policy,
    make_request,
    client,
) -> None:
    _, update = load_policy()
    found = make_generator(sync="file")
    found.sync(update(0))
    groups = found.generate(make_request())
    next(groups)
    meddle(client(engine), str(engine.plan.model))
    with pytest.raises(SyncError, match="does another run use the same server") as raised:
        list(groups)
    if meddle is not reloads_and_says_so:
        assert "somebody else has called" in str(raised.value)
    # What is given next is ours again.
    found.sync(update(1))
    assert len(list(found.generate(make_request()))) == 3
