"""Weights in shared memory: they arrive, or nothing is applied, whoever dies on the way, and
nothing is left of them."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2 as httpx
import psutil
import pytest

from grpo_core.errors import ConfigError, SyncError
from grpo_core.protocols import BuildContext
from grpo_generator_vllm_server import VLLMServerConfig, VLLMServerGenerator, ipc, packing
from grpo_generator_vllm_server.client import Server
from grpo_generator_vllm_server.engine.grpo_vllm_memory import TOGETHER

CLOSE = 1e-3
"""As in ``test_in_flight.py``."""


@pytest.fixture(autouse=True)
def _several_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "BUCKET_BYTES", 500_000)


@pytest.fixture
def on_fakes(tmp_path: Path) -> Callable[..., VLLMServerGenerator]:
    def make(servers: list[Any], **options: Any) -> VLLMServerGenerator:
        urls = tuple(server.url for server in servers)
        config = VLLMServerConfig(urls=urls, sync="ipc", recover_seconds=0, **options)
        context = BuildContext(role="generator", name="vllm-server", seed=0, run_dir=tmp_path)
        return VLLMServerGenerator(config, context)

    return make


def calls(server: Any, method: str) -> list[Any]:
    return [b["kwargs"] for p, b in server.calls if p == "/collective_rpc" if b["method"] == method]


def test_one_server_of_two_that_cannot_open_it_is_refused_before_weights_are_packed(
    fake_servers, on_fakes, load_policy
) -> None:
    servers = fake_servers(2)
    servers[1].shares_memory = False
    generator = on_fakes(servers)
    with pytest.raises(ConfigError, match=f"sync is 'ipc', but .*{servers[1].url}.*file or broad"):
        generator.sync(load_policy()[1](0))
    assert not calls(servers[0], "grpo_expect")
    generator.close()
    assert "one machine" in TOGETHER


def test_cuda_where_there_is_none_is_refused(fake_servers, on_fakes, load_policy) -> None:
    generator = on_fakes(fake_servers(1), ipc_memory="cuda")
    with pytest.raises(ConfigError, match="the policy is on cpu, the servers on cpu; set it to"):
        generator.sync(load_policy()[1](0))
    generator.close()


def test_a_server_that_was_restarted_is_given_the_same_memory_again(
    fake_servers, on_fakes, load_policy, make_request, caplog
) -> None:
    (server,) = fake_servers(1)
    generator = on_fakes([server])
    update = load_policy()[1]
    with caplog.at_level("INFO"):
        assert generator.sync(update(3)) == 3
    assert "by ipc through the host's memory: all of them, in float32" in caplog.text
    server.restart()
    groups = list(generator.generate(make_request()))
    assert {group.policy_version for group in groups} == {3}
    first, second = calls(server, "grpo_open")
    assert first == second
    sizes = calls(server, "grpo_expect")[0]["manifest"]["buckets"]
    assert [handle["size"] for handle in first["handles"]] == sizes
    assert len(sizes) > 2
    assert generator.metrics()["sync/bytes"] <= sum(sizes)
    fd = first["handles"][0]["fd"]
    assert open_files()[fd] == "/memfd:grpo-weights (deleted)"
    generator.close()
    assert "grpo-weights" not in str(open_files())


def open_files() -> dict[int, str]:
    found = {}
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the folder itself, which was open meanwhile
            found[int(link.name)] = os.readlink(link)
    return found


def family(engine: Any) -> list[psutil.Process]:
    supervisor = psutil.Process(engine._process.pid)
    return [psutil.Process(), supervisor, *supervisor.children(recursive=True)]


def mapped(processes: list[psutil.Process]) -> list[int]:
    """Which of them still have shared weights in their address space."""
    gc.collect()
    return [
        process.pid
        for process in processes
        if process.is_running()
        and "memfd:grpo-weights" in Path(f"/proc/{process.pid}/maps").read_text()
    ]


@pytest.mark.vllm
def test_weights_arrive_and_wrong_ones_are_refused_before_anything_is_opened(
    make_generator,
    load_policy,
    make_request,
    largest_difference,
    move,
    engine,
    left_in_shm,
    monkeypatch,
) -> None:
    model, update = load_policy()
    generator = make_generator(sync="ipc")
    request = make_request()
    processes = family(engine)
    for version in (0, 1):
        assert generator.sync(update(version)) == version
        assert largest_difference(model, request, list(generator.generate(request))) < CLOSE
        assert generator.metrics()["sync/bytes"] > 1e6
        assert not mapped(processes)
        move(model)
    pack, rpc = ipc.pack, Server.rpc
    methods: list[str] = []

    def cut(tensors: Any, new: Any) -> Any:
        return pack(((n, t[:-1] if "norm" in n else t) for n, t in tensors), new)

    def noted(self: Server, method: str, **arguments: Any) -> list[Any]:
        methods.append(method)
        return rpc(self, method, **arguments)

    monkeypatch.setattr(ipc, "pack", cut)
    monkeypatch.setattr(Server, "rpc", noted)
    with pytest.raises(SyncError, match="another base model"):
        generator.sync(update(2))
    assert "grpo_expect" in methods
    assert "grpo_open" not in methods
    monkeypatch.setattr(ipc, "pack", pack)

    def forged(self: Server, method: str, **arguments: Any) -> list[Any]:
        if method == "grpo_open":
            arguments["handles"][-1] = arguments["handles"][-1] | {"key": "00" * 16}
        return noted(self, method, **arguments)

    monkeypatch.setattr(Server, "rpc", forged)
    methods.clear()
    with pytest.raises(SyncError, match="does not hold the weights that the trainer has sent"):
        generator.sync(update(3))
    assert "grpo_apply" not in methods
    assert "grpo_drop" in methods
    assert not mapped(processes)
    (held,) = generator._fleet.members[0].server.rpc("grpo_held", seconds=30)
    assert (held["held"], held["broken"]) == (f"{generator._run}.v1", None)
    monkeypatch.setattr(Server, "rpc", rpc)
    assert generator.sync(update(4)) == 4
    assert largest_difference(model, request, list(generator.generate(request))) < CLOSE
    assert not left_in_shm(model.model.embed_tokens.weight)


TRAINER = """\
import os, signal, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
from grpo_core.policy import named_tensors
from grpo_core.types import WeightUpdate
from grpo_generator_vllm_server import VLLMServerConfig, VLLMServerGenerator
from grpo_generator_vllm_server.client import Server

folder, url = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder)
generator = VLLMServerGenerator(VLLMServerConfig(urls=(url,), sync="ipc"))
update = WeightUpdate(
    policy_version=0, model=model, tokenizer=AutoTokenizer.from_pretrained(folder),
    named_tensors=lambda: named_tensors(model),
)
rpc = Server.rpc
def killed(self, method, **arguments):
    found = rpc(self, method, **arguments)
    if method == "grpo_open":
        print("in the middle", found, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    return found
Server.rpc = killed
generator.sync(update)
"""


@pytest.mark.vllm
def test_a_trainer_that_dies_in_the_middle_leaves_a_paused_server_with_its_old_weights(
    make_generator, load_policy, make_request, largest_difference, move, engine, left_in_shm
) -> None:
    model, update = load_policy()
    first = make_generator(sync="ipc")
    first.sync(update(0))
    processes = family(engine)
    dead = subprocess.run(
        [sys.executable, "-c", TRAINER, str(engine.plan.model), engine.plan.url],
        capture_output=True,
        text=True,
        check=False,
    )
    assert dead.returncode == -9, dead.stderr
    assert "in the middle [{'opened': " in dead.stdout
    assert not left_in_shm(model.model.embed_tokens.weight)
    auth = {"authorization": f"Bearer {engine.plan.token}"}
    with httpx.Client(base_url=engine.plan.url, headers=auth, timeout=60) as http:
        assert http.get("/is_paused").json() == {"is_paused": True}
        (held,) = http.post("/collective_rpc", json={"method": "grpo_held"}).json()["results"]
    assert (held["held"], held["broken"]) == (f"{first._run}.v0", None)
    # The worker still has the dead one's memory; the next push lets go of it.
    assert mapped(processes)
    move(model)
    assert first.sync(update(1)) == 1
    assert not mapped(processes)
    request = make_request()
    assert largest_difference(model, request, list(first.generate(request))) < CLOSE


@pytest.mark.vllm
def test_a_server_that_dies_in_the_middle_leaves_nothing_and_others_sample_on(
    make_generator,
    load_policy,
    make_request,
    largest_difference,
    move,
    engine,
    spare_engine,
    left_in_shm,
    monkeypatch,
) -> None:
    model, update = load_policy()
    generator = make_generator(engine, spare_engine, sync="ipc")
    assert generator.sync(update(0)) == 0
    assert generator.metrics()["sync/servers"] == 2
    move(model)
    dying = family(spare_engine)[1:]
    worker = next(process for process in dying if "Worker" in process.name())
    rpc = Server.rpc

    def killing(self: Server, method: str, **arguments: Any) -> list[Any]:
        if method == "grpo_apply" and self.url == spare_engine.plan.url:
            worker.kill()
        return rpc(self, method, **arguments)

    monkeypatch.setattr(Server, "rpc", killing)
    assert generator.sync(update(1)) == 1
    assert generator.metrics()["sync/servers"] == 1
    assert spare_engine.plan.url in generator._fleet.members[1].out
    request = make_request()
    assert largest_difference(model, request, list(generator.generate(request))) < CLOSE
    psutil.wait_procs(dying[1:], timeout=60)
    generator.close()
    assert not mapped([*family(engine), *dying])
    assert not left_in_shm(model.model.embed_tokens.weight)
    assert "grpo-weights" not in str(open_files())
