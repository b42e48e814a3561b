"""Weights over a process group: they arrive, or nothing is applied, whoever dies on the way."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import httpx2 as httpx
import psutil
import pytest
import torch

from grpo_core.errors import ConfigError, SyncError
from grpo_generator_vllm_server import broadcast, packing
from grpo_generator_vllm_server.engine.grpo_vllm_contents import require_layout, unpack
from grpo_generator_vllm_server.weights import Sent, sent_tensors

CLOSE = 1e-3
"""As in ``test_in_flight.py``."""


@pytest.fixture(autouse=True)
def _several_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "BUCKET_BYTES", 500_000)


def test_what_is_packed_is_what_is_unpacked(load_policy) -> None:
    model, update = load_policy()
    sent = Sent()
    packed = packing.pack(sent_tensors(update(3), None, sent), packing.Own)
    assert len(packed.buckets) > 2
    require_layout(packed.manifest)
    found = dict(unpack(packed.manifest, [bucket.bytes for bucket in packed.buckets]))
    own = dict(model.named_parameters())
    assert set(found) == {*own, "lm_head.weight"}
    for name, parameter in own.items():
        assert torch.equal(found[name], parameter.detach())
    assert sent.bytes == sum(t.nbytes for t in found.values())
    assert not sent.rounded
    assert "sync/rounding_max" not in sent.metrics()


def test_what_the_servers_precision_takes_is_reported(load_policy, move) -> None:
    model, update = load_policy()
    move(model)  # as stored, its weights are whole in bfloat16
    sent = Sent()
    found = dict(sent_tensors(update(0), "bfloat16", sent))
    own = dict(model.named_parameters())
    changes = [
        float((found[n].float() - p.detach()).norm() / p.detach().norm())
        for n, p in own.items()
        if float(p.detach().norm())
    ]
    assert sent.metrics()["sync/rounding_max"] == pytest.approx(max(changes), rel=1e-4)
    # Half of a unit in the last of 8 bits at most, and about a third of that in the mean.
    assert 0 < sent.metrics()["sync/rounding_mean"] <= max(changes) < 2**-8


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m.update(count=1), "lists 47 of 1"),
        (lambda m: m["tensors"].update(a=("float32", [1], 0, 0)), "over another|lists 48"),
        (lambda m: m["buckets"].__setitem__(0, 8), "beyond its bucket"),
        (lambda m: m["tensors"].update({"model.norm.weight": ("load", [1], 0, 0)}), "dtype"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(load_policy, change: Any, said: str) -> None:
    packed = packing.pack(sent_tensors(load_policy()[1](0), None, Sent()), packing.Own)
    change(packed.manifest)
    with pytest.raises(ValueError, match=said):
        require_layout(packed.manifest)


def test_another_machine_needs_an_address(load_policy) -> None:
    class Elsewhere:
        url = "http://10.1.2.3:8000"

    way = broadcast.ByBroadcast(None, backend="gloo", host=None)
    with pytest.raises(ConfigError, match=r"generator\.broadcast_host"):
        way._own_address(Elsewhere())  # type: ignore[arg-type]
    assert (
        broadcast.ByBroadcast(None, backend="gloo", host="10.1.2.1")._own_address(
            Elsewhere()  # type: ignore[arg-type]
        )
        == "10.1.2.1"
    )


def test_servers_that_do_not_see_the_folder_get_a_broadcast(
    fake_servers, load_policy, tmp_path: Path, caplog
) -> None:
    from grpo_core.protocols import BuildContext
    from grpo_generator_vllm_server import VLLMServerConfig, VLLMServerGenerator

    servers = fake_servers(2)
    servers[1].shares_folder = False
    urls = tuple(s.url for s in servers)
    config = VLLMServerConfig(urls=urls, recover_seconds=0, sync_seconds=1)
    context = BuildContext(role="generator", name="vllm-server", seed=0, run_dir=tmp_path)
    generator = VLLMServerGenerator(config, context)
    with caplog.at_level("INFO"), pytest.raises(SyncError):  # a fake joins no group
        generator.sync(load_policy()[1](0))
    assert "by broadcast over gloo" in caplog.text
    generator.close()


@pytest.mark.vllm
def test_weights_arrive_by_broadcast_and_wrong_ones_are_refused_before_they_are_sent(
    make_generator, load_policy, make_request, largest_difference, move, engine, monkeypatch
) -> None:
    model, update = load_policy()
    generator = make_generator(sync="broadcast")
    request = make_request()
    for version in (0, 1):
        assert generator.sync(update(version)) == version
        assert largest_difference(model, request, list(generator.generate(request))) < CLOSE
        assert generator.metrics()["sync/bytes"] > 1e6
        assert generator.metrics()["sync/servers"] == 1
        move(model)
    pack = broadcast.pack

    def cut(tensors: Any, new: Any) -> Any:
        return pack(((n, t[:-1] if "norm" in n else t) for n, t in tensors), new)

    sends: list[Any] = []
    monkeypatch.setattr(broadcast, "pack", cut)
    monkeypatch.setattr(broadcast, "broadcast", lambda *a: sends.append(a))
    with pytest.raises(SyncError, match="another base model"):
        generator.sync(update(2))
    assert not sends
    monkeypatch.undo()
    monkeypatch.setattr(packing, "BUCKET_BYTES", 500_000)
    assert generator.sync(update(3)) == 3
    assert largest_difference(model, request, list(generator.generate(request))) < CLOSE


@pytest.mark.vllm
def test_what_a_broadcast_opens_listens_on_loopback_and_only_meanwhile(
    make_generator, load_policy, engine, monkeypatch
) -> None:
    _, update = load_policy()
    generator = make_generator(sync="broadcast")
    supervisor = psutil.Process(engine._process.pid)
    everybody = [psutil.Process(), supervisor, *supervisor.children(recursive=True)]

    def listening() -> set[Any]:
        return {
            connection.laddr
            for process in everybody
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }

    seen: list[set[Any]] = []
    send = broadcast.broadcast
    before = listening()

    def looked_at(*arguments: Any) -> None:
        seen.append(listening())
        send(*arguments)

    monkeypatch.setattr(broadcast, "broadcast", looked_at)
    generator.sync(update(0))
    assert seen[0] - before
    assert {address.ip for address in seen[0]} <= {"127.0.0.1", "::1"}
    end = time.monotonic() + 60
    while listening() - before and time.monotonic() < end:
        time.sleep(0.1)
    assert not listening() - before


TRAINER = """\
import os, signal, sys
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer
from grpo_core.policy import named_tensors
from grpo_core.types import WeightUpdate
from grpo_generator_vllm_server import VLLMServerConfig, VLLMServerGenerator, broadcast, packing

packing.BUCKET_BYTES = 500_000
folder, url = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder)
generator = VLLMServerGenerator(VLLMServerConfig(urls=(url,), sync="broadcast"))
update = WeightUpdate(
    policy_version=0, model=model, tokenizer=AutoTokenizer.from_pretrained(folder),
    named_tensors=lambda: named_tensors(model),
)
send = broadcast.broadcast
sent = []
def killed(*arguments):
    sent.append(1)
    if len(sent) == 3:
        print("in the middle", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    send(*arguments)
broadcast.broadcast = killed
generator.sync(update)
"""


@pytest.mark.vllm
def test_a_trainer_that_dies_in_the_middle_leaves_a_paused_server_with_its_old_weights(
    make_generator, load_policy, make_request, largest_difference, move, engine
) -> None:
    model, update = load_policy()
    first = make_generator(sync="broadcast")
    first.sync(update(0))
    arguments = [str(engine.plan.model), engine.plan.url]
    dead = subprocess.run(
        [sys.executable, "-c", TRAINER, *arguments], capture_output=True, text=True, check=False
    )
    assert dead.returncode == -9, dead.stderr
    assert "in the middle" in dead.stdout
    auth = {"authorization": f"Bearer {engine.plan.token}"}
    with httpx.Client(base_url=engine.plan.url, headers=auth, timeout=60) as http:
        assert http.get("/is_paused").json() == {"is_paused": True}
        (held,) = http.post("/collective_rpc", json={"method": "grpo_held"}).json()["results"]
    assert held["held"] == f"{first._run}.v0"
    assert held["broken"] is None
    move(model)
    started = time.monotonic()
    assert first.sync(update(1)) == 1
    assert time.monotonic() - started < 20
    request = make_request()
    assert largest_difference(model, request, list(first.generate(request))) < CLOSE


@pytest.mark.vllm
def test_a_server_that_dies_in_the_middle_while_others_sample_on(
    make_generator, load_policy, make_request, move, until_sampling, engine, spare_engine
) -> None:
    """Its completions go on elsewhere, under the new weights, with what they have."""
    model, update = load_policy()
    old = deepcopy(model)
    generator = make_generator(engine, spare_engine, sync="broadcast", requests_at_once=2)
    assert generator.sync(update(0)) == 0
    assert generator.metrics()["sync/servers"] == 2
    request = make_request(
        prompt_ids_P=tuple((10 + i, 20, 30) for i in range(4)),
        eos_token_ids=(),
        sampling={"max_tokens": 800},
    )
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.extend(generator.generate(request)), daemon=True)
    thread.start()
    until_sampling(generator)
    move(model)
    supervisor = psutil.Process(spare_engine._process.pid)
    worker = next(p for p in supervisor.children(recursive=True) if "Worker" in p.name())
    send = broadcast.broadcast
    sends: list[Any] = []

    def killing(group: Any, bucket: Any) -> None:
        sends.append(group)
        if len(sends) == 4:
            os.kill(worker.pid, 9)
        send(group, bucket)

    broadcast.broadcast = killing
    started = time.monotonic()
    try:
        assert generator.sync(update(1)) == 1
    finally:
        broadcast.broadcast = send
    assert time.monotonic() - started < 100
    assert generator.metrics()["sync/servers"] == 1
    out = generator._fleet.members[1].out
    assert "broken off" in out or "cannot be reached" in out or "answered 5" in out
    thread.join(120)
    assert sorted(group.index for group in found) == [0, 1, 2, 3]
    versions = set()
    for group in found:
        for completion in group.completions_G:
            assert len(completion.token_ids) == 800
            versions |= set(completion.policy_versions or [group.policy_version])
            for version, own in ((0, old), (1, model)):
                row = torch.tensor([[*request.prompt_ids_P[group.index], *completion.token_ids]])
                with torch.no_grad():
                    logits = own(input_ids=row, use_cache=False).logits[0, 2:-1].double()
                logp = logits.log_softmax(-1).gather(1, row[0, 3:, None]).squeeze(1)
                at = [
                    v == version for v in completion.policy_versions or [group.policy_version] * 800
                ]
                said = torch.tensor(completion.logprobs, dtype=torch.float64)
                assert float(((logp - said).abs() * torch.tensor(at)).max()) < CLOSE
    assert versions == {0, 1}
