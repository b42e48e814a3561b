"""A real engine: what it samples from is the policy, before and after updates, in every way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2 as httpx
import psutil
import pytest

from grpo_core import ModelSettings, Policy
from grpo_core.errors import SyncError
from grpo_generator_vllm_server.errors import RequestRefusedError
from grpo_generator_vllm_server.launch import Launched

pytestmark = pytest.mark.vllm

CLOSE = 5e-5
"""Nats between two implementations in float32; measured 4e-6."""


def test_adapters_travel_alone_and_arrive(
    make_generator,
    load_policy,
    make_request,
    largest_difference,
    move,
    adapter_engine,
    tmp_path: Path,
) -> None:
    model, update = load_policy(lora_rank=8, folder=Path(adapter_engine.plan.model))
    generator = make_generator(adapter_engine, sync="adapter")
    request = make_request()
    for version in (0, 1, 2):
        assert generator.sync(update(version)) == version
        (folder,) = (tmp_path / "sync").iterdir()
        assert sum(f.stat().st_size for f in folder.glob("*.safetensors")) < 1e6
        groups = list(generator.generate(request))
        assert largest_difference(model, request, groups) < CLOSE
        move(model, "lora_")
    generator.close()
    # On a base that somebody has replaced the same adapter would be another policy.
    other = make_generator(sync="file")
    other.sync(update(0))
    with pytest.raises(SyncError, match="base weights have been replaced"):
        make_generator(sync="adapter").sync(update(3))


@pytest.mark.parametrize(
    ("temperature", "sync"), [(1.0, "auto"), (0.7, "auto"), (0.0, "auto"), (1.0, "ipc")]
)
def test_logprobs_are_the_policys_before_and_after_an_update(
    make_generator,
    load_policy,
    make_request,
    largest_difference,
    move,
    temperature: float,
    sync: str,
) -> None:
    model, update = load_policy()
    generator = make_generator(sync=sync)
    # Longer than one block of the prefix cache (128 on a CPU), whose keys would be the old ones.
    long = tuple(5 + i % 50 for i in range(300))
    request = make_request(prompt_ids_P=(long, (10, 20, 30)), sampling={"temperature": temperature})
    for version in (0, 1):
        assert generator.sync(update(version)) == version
        groups = list(generator.generate(request))
        assert {g.policy_version for g in groups} == {version}
        assert largest_difference(model, request, groups) < CLOSE
        # The embeddings are the head as well (tied): a head that stays old shows here.
        move(model)


@pytest.mark.parametrize("sync", ["file", "ipc"])
def test_merged_adapters_arrive(
    make_generator, load_policy, make_request, largest_difference, move, sync: str
) -> None:
    model, update = load_policy(lora_rank=4)
    move(model, "lora_")
    generator = make_generator(sync=sync)
    generator.sync(update(3))
    request = make_request()
    assert largest_difference(model, request, list(generator.generate(request))) < CLOSE


def test_a_qlora_policy_arrives_merged_where_that_is_asked_for(
    make_generator, make_request, largest_difference, move, engine
) -> None:
    """The server then holds what the 4-bit weights stand for, with the adapters."""
    pytest.importorskip("bitsandbytes")
    policy = Policy(
        ModelSettings(path=str(engine.plan.model), lora={"r": 4}, quantization={}), seed=0
    )
    move(policy.model, "lora_")
    generator = make_generator(sync="file")
    generator.sync(policy.weight_update())
    request = make_request()
    found = list(generator.generate(request))
    assert largest_difference(policy.model, request, found) < 1e-3
    # In the server's float32 nothing is lost, and nothing is reported.
    assert "sync/rounding_max" not in generator.metrics()


def test_seeds_stops_and_limits(make_generator, load_policy, make_request) -> None:
    _, update = load_policy()
    generator = make_generator()
    generator.sync(update(0))

    def texts(**changes: Any) -> dict[int, list[tuple[int, ...]]]:
        groups = generator.generate(make_request(**changes))
        return {g.index: [c.token_ids for c in g.completions_G] for g in groups}

    first = texts(group_size=6)
    assert texts(group_size=6) == first
    assert texts(group_size=6, seed=8) != first
    assert texts(group_size=6, step=1) != first
    # Alone, by its key, a prompt gets what it got among others.
    alone = texts(group_size=6, prompt_ids_P=((11, 20, 31),), prompt_keys_P=(1,))
    assert alone[0] == first[1]
    assert len({ids for group in first.values() for ids in group}) > 6
    greedy = texts(sampling={"temperature": 0.0})
    assert all(len(set(group)) == 1 for group in greedy.values())

    (group,) = generator.generate(make_request(prompt_ids_P=((10, 20, 30),), group_size=2))
    shown = group.completions_G[0]
    second = load_policy()[1](0).tokenizer.decode(list(shown.token_ids[:2]))
    (stopped,) = generator.generate(
        make_request(prompt_ids_P=((10, 20, 30),), group_size=2, sampling={"stop": (second,)})
    )
    assert stopped.completions_G[0].token_ids == shown.token_ids[:2]
    assert stopped.completions_G[0].finish_reason == "stop"
    for completion in (c for g in generator.generate(make_request()) for c in g.completions_G):
        ended = completion.token_ids[-1] == 2
        assert completion.finish_reason == ("stop" if ended else "length")
        assert ended or len(completion.token_ids) == 12


def test_structured_outputs(make_generator, load_policy, make_request) -> None:
    _, update = load_policy()
    generator = make_generator(structured_outputs={"regex": "[0-9]"})
    generator.sync(update(0))
    decode = update(0).tokenizer.decode
    for group in generator.generate(make_request()):
        for completion in group.completions_G:
            assert decode([i for i in completion.token_ids if i != 2]).strip().isdigit()


def test_a_failed_push_leaves_the_server_paused_with_its_old_weights(
    make_generator, load_policy, make_request, largest_difference, move, engine, monkeypatch
) -> None:
    model, update = load_policy()
    generator = make_generator()
    generator.sync(update(0))
    import grpo_generator_vllm_server.sync as sync_module

    def truncated(folder: Path, update: Any, dtype: str | None) -> None:
        write(folder, update, dtype)
        file = next(folder.glob("*.safetensors"))
        file.write_bytes(file.read_bytes()[:-100])

    def without_one(folder: Path, update: Any, dtype: str | None) -> None:
        import dataclasses

        all_but_one = list(update.named_tensors())[:-1]
        write(folder, dataclasses.replace(update, named_tensors=lambda: iter(all_but_one)), dtype)

    def of_another_shape(folder: Path, update: Any, dtype: str | None) -> None:
        import dataclasses

        cut = [(n, t[:-1] if "norm" in n else t) for n, t in update.named_tensors()]
        write(folder, dataclasses.replace(update, named_tensors=lambda: iter(cut)), dtype)

    write = sync_module.write_weights
    for fault, said in (
        (truncated, "the manifest says"),
        (without_one, "1 missing"),
        (of_another_shape, "another base model"),
    ):
        monkeypatch.setattr(sync_module, "write_weights", fault)
        with pytest.raises(SyncError, match=said):
            generator.sync(update(1))
        auth = {"authorization": f"Bearer {engine.plan.token}"}
        paused = httpx.get(f"{engine.plan.url}/is_paused", headers=auth, timeout=60).json()
        assert paused == {"is_paused": True}
        generator.close()
        generator = make_generator()
    monkeypatch.setattr(sync_module, "write_weights", write)
    move(model)
    assert generator.sync(update(1)) == 1
    request = make_request()
    assert largest_difference(model, request, list(generator.generate(request))) < CLOSE


def test_another_run_on_the_same_server_is_noticed(
    make_generator, load_policy, make_request
) -> None:
    _, update = load_policy()
    mine, other = make_generator(), make_generator()
    mine.sync(update(4))
    groups = mine.generate(make_request())
    next(groups)
    other.sync(update(4))
    with pytest.raises(SyncError, match="another run"):
        list(groups)


def test_no_route_answers_without_the_token(engine: Launched) -> None:
    base = engine.plan.url
    auth = {"authorization": f"Bearer {engine.plan.token}"}
    paths = httpx.get(f"{base}/openapi.json", headers=auth, timeout=60).json()["paths"]
    routes = [(m.upper(), p) for p, methods in paths.items() for m in methods]
    routes += [("GET", "/docs"), ("GET", "/metrics"), ("GET", "/openapi.json"), ("GET", "/nothing")]
    routes += [("OPTIONS", "/v1/completions"), ("GET", "/health/../v1/models")]
    assert {"/collective_rpc", "/pause", "/v1/load_lora_adapter", "/invocations"} <= set(paths)
    assert len(routes) > 30
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": engine.plan.token}):
        answers = {
            (m, p): httpx.request(m, base + p, headers=headers, json={}, timeout=60).status_code
            for m, p in routes
            if p != "/health"
        }
        assert set(answers.values()) == {401}, answers
    assert httpx.get(f"{base}/health", timeout=60).status_code == 200
    # The token is not in the processes' arguments, which every user of a machine can read.
    family = processes(engine)
    assert len(family) >= 3
    assert not [p for p in family if engine.plan.token in " ".join(p.cmdline())]


def test_it_listens_on_this_machine_only(engine: Launched) -> None:
    listening = {
        connection.laddr.ip
        for process in processes(engine)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening <= {"127.0.0.1", "::1"}
    assert listening


def test_a_wrong_token_is_said(make_generator, load_policy, monkeypatch) -> None:
    _, update = load_policy()
    generator = make_generator(token_env="OTHER_TOKEN")
    monkeypatch.setenv("OTHER_TOKEN", "not-the-one")
    with pytest.raises(Exception, match="bearer token is missing or wrong"):
        generator.sync(update(0))


def test_a_prompt_that_the_server_cannot_take_is_refused_at_once(
    make_generator, load_policy, make_request
) -> None:
    _, update = load_policy()
    generator = make_generator()
    generator.sync(update(0))
    with pytest.raises(RequestRefusedError, match="400"):
        list(generator.generate(make_request(prompt_ids_P=((10, 5000),))))


def processes(engine: Launched) -> list[psutil.Process]:
    assert engine._process is not None
    supervisor = psutil.Process(engine._process.pid)
    return [supervisor, *supervisor.children(recursive=True)]
