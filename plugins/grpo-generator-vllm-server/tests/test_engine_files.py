"""What runs beside the engine, without one: the guard, the supervisor, the check of weights."""

from __future__ import annotations

import asyncio
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
import torch

from grpo_generator_vllm_server.engine.grpo_vllm_contents import read_complete
from grpo_generator_vllm_server.engine.grpo_vllm_guard import Guard
from grpo_generator_vllm_server.engine.grpo_vllm_worker import GRPOWorker
from grpo_generator_vllm_server.launch import ENGINE
from grpo_generator_vllm_server.weights import write_weights


def ask(guard: Guard, path: str, *headers: bytes, kind: str = "http") -> list[Any]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {}

    pairs = [(b"authorization", value) for value in headers]
    asyncio.run(guard({"type": kind, "path": path, "headers": pairs}, receive, send))
    return sent


@pytest.fixture
def guard(monkeypatch: pytest.MonkeyPatch) -> Guard:
    monkeypatch.setenv("GRPO_VLLM_TOKEN", "secret")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    return Guard(app)


@pytest.mark.parametrize(
    "headers", [(), (b"Bearer wrong",), (b"secret",), (b"Bearer secret", b"Bearer secret")]
)
@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/collective_rpc", "/health/x", ""])
def test_no_path_without_the_token(guard: Guard, path: str, headers: tuple[bytes, ...]) -> None:
    assert ask(guard, path, *headers)[0]["status"] == 401
    assert ask(guard, path, *headers, kind="websocket") == [
        {"type": "websocket.close", "code": 1008}
    ]


def test_the_token_opens_and_answers_name_the_process(guard: Guard) -> None:
    names = [
        dict(ask(guard, path, b"Bearer secret")[0]["headers"])[b"x-grpo-instance"]
        for path in ("/v1/models", "/health")
    ]
    assert names[0] == names[1]
    assert len(names[0]) == 16
    assert ask(guard, "/health")[0]["status"] == 200


def test_a_server_without_a_token_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRPO_VLLM_TOKEN", raising=False)
    with pytest.raises(RuntimeError, match="grpo serve"):
        Guard(lambda *_: None)  # type: ignore[arg-type,return-value]


FAMILY = """\
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
time.sleep(60)
"""
OWNER = """\
import os, subprocess, sys, time
reading, writing = os.pipe()
supervisor = subprocess.Popen(
    [sys.executable, {supervisor!r}, str(reading), sys.executable, "-c", {family!r}],
    pass_fds=(reading,), start_new_session=True,
)
os.close(reading)
print(supervisor.pid, flush=True)
time.sleep(60)
"""


def gone(processes: list[psutil.Process], seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not [p for p in processes if p.is_running() and p.status() != "zombie"]:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("victim", ["owner", "supervisor", "server"])
def test_no_process_survives_the_killing_of_another(victim: str) -> None:
    script = OWNER.format(supervisor=str(ENGINE / "grpo_vllm_supervisor.py"), family=FAMILY)
    owner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    supervisor = psutil.Process(int(owner.stdout.readline()))
    end = time.monotonic() + 60
    while len(family := supervisor.children(recursive=True)) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    server, child = family
    try:
        if victim == "owner":
            os.kill(owner.pid, signal.SIGKILL)
            assert gone([supervisor, server, child])
        elif victim == "server":
            server.kill()
            assert gone([supervisor, server, child])
        else:
            supervisor.kill()
            # vLLM's API server ends its engine on the SIGTERM that it then gets.
            assert gone([supervisor, server])
    finally:
        for process in (child, server, supervisor):
            if process.is_running():
                process.kill()
        owner.kill()
        owner.wait()
        owner.stdout.close()


SHARING = """\
import socket, sys, tempfile, time
from multiprocessing.shared_memory import SharedMemory
segment, end = SharedMemory(create=True, size=64), socket.socket(socket.AF_UNIX)
end.bind(tempfile.mktemp())
print(segment.name, end.getsockname(), flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("killed", [True, False])
def test_neither_shared_memory_nor_sockets_are_left(killed: bool) -> None:
    reading, writing = os.pipe()
    supervisor = subprocess.Popen(
        [
            *(sys.executable, str(ENGINE / "grpo_vllm_supervisor.py"), str(reading)),
            *(sys.executable, "-c", SHARING),
        ],
        pass_fds=(reading,),
        stdout=subprocess.PIPE,
        text=True,
    )
    os.close(reading)
    try:
        assert supervisor.stdout is not None
        segment, end = supervisor.stdout.readline().split()
        segment = f"/dev/shm/{segment}"
        assert os.path.exists(segment)
        assert os.path.exists(end)
        if killed:
            psutil.Process(supervisor.pid).children()[0].kill()
        else:
            os.close(writing)
        supervisor.wait(60)
        assert not os.path.exists(segment)
        assert not os.path.exists(os.path.dirname(end))
    finally:
        supervisor.kill()
        supervisor.wait()


@pytest.fixture
def written(tmp_path: Path, load_policy) -> Path:
    folder = tmp_path / "sync" / "grpo-a.v3"
    write_weights(folder, load_policy()[1](3), None)
    return folder


def test_what_is_written_is_what_is_read_and_the_tied_head_is_named(
    written: Path, load_policy
) -> None:
    model, _ = load_policy()
    found = read_complete(written)
    own = dict(model.named_parameters())
    assert set(found) == {*own, "lm_head.weight"}
    for name, parameter in own.items():
        torch.testing.assert_close(found[name], parameter.detach(), rtol=0, atol=0)
    assert torch.equal(found["lm_head.weight"], own["model.embed_tokens.weight"])
    assert json.loads((written / "manifest.json").read_text())["policy_version"] == 3
    assert [p.name for p in written.parent.iterdir()] == [written.name]


def test_weights_are_rounded_to_what_the_server_computes_in(tmp_path: Path, load_policy) -> None:
    write_weights(tmp_path / "w", load_policy()[1](0), "bfloat16")
    assert {t.dtype for t in read_complete(tmp_path / "w").values()} == {torch.bfloat16}


def test_weights_in_several_files(tmp_path: Path, load_policy, monkeypatch) -> None:
    monkeypatch.setattr("grpo_generator_vllm_server.weights.FILE_BYTES", 500_000)
    write_weights(tmp_path / "w", load_policy()[1](0), None)
    assert len(list((tmp_path / "w").glob("*.safetensors"))) > 2
    assert len(read_complete(tmp_path / "w")) == 47


def edit(change: Callable[[Any], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        change(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return damage


def cut(folder: Path) -> None:
    (file,) = folder.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1])


def flip(folder: Path) -> None:
    """One bit of the last tensor; size and header are as they were."""
    (file,) = folder.glob("*.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


DAMAGES = [
    (cut, "the manifest says"),
    (lambda folder: (folder / "manifest.json").unlink(), "No such file"),
    (edit(lambda m: m["tensors"].popitem()), "lists 46 of 47"),
    (
        edit(lambda m: m.update(count=48, tensors=m["tensors"] | {"x": ["float32", [1]]})),
        "than the manifest lists: 1 missing",
    ),
    (edit(lambda m: m["tensors"].update({"model.norm.weight": ["float16", [128]]})), "is float32"),
    (edit(lambda m: m["tensors"].update({"model.norm.weight": ["float32", [9]]})), "other shapes"),
    (edit(lambda m: m.update(mark="grpo-a.v2")), "holds the weights grpo-a.v2, not grpo-a.v3"),
    (flip, "1 of 47 tensors hold other numbers than the policy's"),
]


@pytest.mark.parametrize(("damage", "said"), DAMAGES)
def test_damaged_weights_are_refused_before_anything_is_touched(
    written: Path, damage: Callable[[Path], None], said: str
) -> None:
    class Worker(GRPOWorker):
        device = torch.device("cpu")
        reloads = 0

        def _grpo_expected(self) -> None:
            return None

        def reload_weights(self, **_: Any) -> None:
            self.reloads += 1

    worker = Worker()
    assert worker.grpo_load(str(written), written.name) == {"held": "grpo-a.v3"}
    assert worker.reloads == 1
    damage(written)
    found = worker.grpo_load(str(written), written.name)
    assert found["applied"] is False
    assert any(part in found["error"] for part in said.split("|"))
    assert (worker.reloads, worker._grpo_held, worker._grpo_broken) == (1, "grpo-a.v3", None)


def test_a_reload_that_fails_half_way_is_held_by_nobody(written: Path) -> None:
    class Worker(GRPOWorker):
        device = torch.device("cpu")

        def _grpo_expected(self) -> None:
            return None

        def reload_weights(self, **_: Any) -> None:
            raise RuntimeError("no kernel for it")

    worker = Worker()
    found = worker.grpo_load(str(written), written.name)
    assert found == {"error": "RuntimeError: no kernel for it", "applied": True}
    assert worker._grpo_held is None
    assert worker._grpo_broken == "RuntimeError: no kernel for it"
