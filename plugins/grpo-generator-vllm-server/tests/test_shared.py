"""Memory that two processes share: what is read is what was packed, and nothing else is opened."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from hashlib import sha256
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo_generator_vllm_server import packing, shared
from grpo_generator_vllm_server.engine import grpo_vllm_memory as memory
from grpo_generator_vllm_server.engine.grpo_vllm_contents import unpack
from grpo_generator_vllm_server.engine.grpo_vllm_digest import digest
from grpo_generator_vllm_server.engine.grpo_vllm_worker import GRPOWorker
from grpo_generator_vllm_server.launch import ENGINE

TENSORS = {
    "a": torch.arange(3000, dtype=torch.float32).view(30, 100),
    "turned": torch.arange(3000, dtype=torch.float32).view(30, 100).T,
    "b": torch.linspace(-1, 1, 1001).bfloat16(),
    "large": torch.arange(20_000, dtype=torch.float32),
    "scalar": torch.tensor(7),
}

READER = """\
import hashlib, json, sys
sys.path.insert(0, sys.argv[1])
import torch
import grpo_vllm_contents, grpo_vllm_memory
manifest, handles, device = json.load(sys.stdin)
buckets = grpo_vllm_memory.open_all(handles, manifest["buckets"], torch.device(device))
found = {
    name: hashlib.sha256(t.cpu().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
    for name, t in grpo_vllm_contents.unpack(manifest, buckets)
}
devices = {t.device.type for _, t in grpo_vllm_contents.unpack(manifest, buckets)}
grpo_vllm_memory.close_all(buckets)
left = "grpo-weights" in open("/proc/self/maps").read()
print(json.dumps([found, sorted(devices), left, "grpo_core" in sys.modules]))
"""
"""As in vLLM's environment: the folder of the extension is there, grpo-core is not."""

TRAINER = """\
import json, sys
import torch
from grpo_generator_vllm_server import packing, shared
memory = shared.HostMemory()
tensor = torch.arange(100_000, dtype=torch.float32)
packed = packing.pack(iter({"a": tensor}.items()), memory.new)
memory.share()
print(json.dumps([packed.manifest, [b.handle() for b in packed.buckets]]), flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "BUCKET_BYTES", 30_000)


def pack(made: shared.SharedMemory) -> tuple[dict[str, Any], list[Any]]:
    packed = packing.pack(iter(TENSORS.items()), made.new)
    made.share()
    digests = {name: digest(tensor) for name, tensor in TENSORS.items()}
    return packed.manifest | {"digests": digests}, [b.handle() for b in packed.buckets]


def sums(tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    return {
        name: sha256(t.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, t in tensors.items()
    }


def read_elsewhere(*sent: Any, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*before, sys.executable, "-c", READER, str(ENGINE)],
        input=json.dumps(sent),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def require_read(made: shared.SharedMemory, device: str) -> None:
    manifest, handles = pack(made)
    assert len(handles) > 2
    done = read_elsewhere(manifest, handles, device)
    assert done.returncode == 0, done.stderr
    found, devices, left, has_core = json.loads(done.stdout)
    assert found == sums(TENSORS)
    assert devices == [device.partition(":")[0]]
    assert not left
    assert not has_core


def test_another_process_reads_what_was_packed() -> None:
    require_read(shared.HostMemory(), "cpu")


@pytest.mark.gpu
def test_another_process_reads_it_from_the_same_gpu() -> None:
    made = shared.memory_of("cuda", torch.device("cuda:0"))
    require_read(made, "cuda:0")
    before = torch.cuda.mem_get_info(0)[0]
    made.new(2**30)
    assert before - torch.cuda.mem_get_info(0)[0] >= 2**30
    made.close()
    made.close()
    assert torch.cuda.mem_get_info(0)[0] >= before


@pytest.mark.gpu
def test_another_process_reads_it_from_another_gpu() -> None:
    if torch.cuda.device_count() < 2 or not torch.cuda.can_device_access_peer(1, 0):
        pytest.skip("there are no two GPUs that reach each other")
    require_read(shared.memory_of("cuda", torch.device("cuda:0")), "cuda:1")


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"key": "00" * memory.KEY_BYTES}, "does not hold the weights"),
        ({"handle": "A" * 85 + "A=="}, "a CUDA handle has 64 bytes|cannot be opened"),
        ({"handle": "AA=="}, "a CUDA handle has 64 bytes, not 1"),
    ],
)
def test_a_wrong_handle_of_a_gpu_is_refused(change: dict[str, Any], said: str) -> None:
    made = shared.memory_of("cuda", torch.device("cuda:0"))
    manifest, handles = pack(made)
    done = read_elsewhere(manifest, [handles[0] | change, *handles[1:]], "cuda:0")
    assert done.returncode != 0
    assert any(part in done.stderr for part in said.split("|")), done.stderr


def test_what_is_open_outlives_a_trainer_that_is_killed(left_in_shm) -> None:
    trainer = subprocess.Popen(
        [sys.executable, "-c", TRAINER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert trainer.stdout is not None
    manifest, handles = json.loads(trainer.stdout.readline())
    buckets = memory.open_all(handles, manifest["buckets"], "cpu")
    trainer.kill()
    trainer.communicate()
    found = dict(unpack(manifest, buckets))
    assert torch.equal(found["a"], torch.arange(100_000, dtype=torch.float32))
    # Even here it has no name, as it would with multiprocessing's or torch's shared memory.
    named = shared_memory.SharedMemory(create=True, size=400)
    named.buf[:400] = found["a"][:100].numpy().tobytes()
    assert left_in_shm(found["a"]) == [named.name.lstrip("/")]
    named.unlink()
    assert not left_in_shm(found["a"])
    assert is_mapped()
    del found
    memory.close_all(buckets)
    assert not is_mapped()
    with pytest.raises(ValueError, match=r"cannot be opened .* must run on one machine"):
        memory.open_all(handles, manifest["buckets"], "cpu")


def is_mapped() -> bool:
    gc.collect()
    return "memfd:grpo-weights" in Path("/proc/self/maps").read_text()


def test_nobody_changes_it_once_it_is_shared() -> None:
    made = shared.HostMemory()
    manifest, handles = pack(made)
    for change in (
        lambda: os.pwrite(made.fd, b"x", 0),
        lambda: os.ftruncate(made.fd, 10),
        lambda: os.posix_fallocate(made.fd, 0, 10_000_000),
    ):
        with pytest.raises(PermissionError):
            change()
    # What a reader does to its views stays with it.
    buckets = memory.open_all(handles, manifest["buckets"], "cpu")
    for _, tensor in unpack(manifest, buckets):
        tensor.zero_()
    again = memory.open_all(handles, manifest["buckets"], "cpu")
    assert sums(dict(unpack(manifest, again))) == sums(TENSORS)


@pytest.mark.parametrize("by", ["close", "garbage collection"])
def test_it_is_freed(by: str) -> None:
    made = shared.HostMemory()
    fd = made.fd
    pack(made)
    assert os.readlink(f"/proc/self/fd/{fd}") == "/memfd:grpo-weights (deleted)"
    if by == "close":
        made.close()
        made.close()
    else:
        del made
    gc.collect()
    assert not os.path.exists(f"/proc/self/fd/{fd}")
    assert not is_mapped()


class Worker(GRPOWorker):
    """The extension without an engine."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.reloads: list[dict[str, torch.Tensor]] = []

    def _grpo_expected(self) -> dict[str, list[int]]:
        return {name: list(tensor.shape) for name, tensor in TENSORS.items()}

    def reload_weights(self, weights_iterator: Iterator[Any]) -> None:
        self.reloads.append({name: tensor.clone() for name, tensor in weights_iterator})


def test_a_worker_takes_over_all_or_nothing() -> None:
    manifest, handles = pack(made := shared.HostMemory())
    worker = Worker()
    assert worker.grpo_opens(handles[0]) == {"opens": True}
    assert "no manifest" in worker.grpo_open(handles)["error"]
    wrong = {**manifest, "tensors": manifest["tensors"] | {"a": ["float32", [3, 10], 0, 0]}}
    assert "another base model" in worker.grpo_expect(wrong)["error"]
    assert "no manifest" in worker.grpo_open(handles)["error"]
    assert worker.grpo_expect(manifest) == {"ready": True}
    assert "0 buckets were received" in worker.grpo_apply("run.v1")["error"]
    assert worker.grpo_expect(manifest) == {"ready": True}
    assert "handles for" in worker.grpo_open(handles[:-1])["error"]
    assert not worker.reloads
    assert worker.grpo_expect(manifest) == {"ready": True}
    assert worker.grpo_open(handles) == {"opened": len(handles)}
    assert worker.grpo_apply("run.v1") == {"held": "run.v1"}
    (found,) = worker.reloads
    assert sums(found) == sums(TENSORS)
    assert not is_mapped()
    worker.grpo_expect(manifest)
    worker.grpo_open(handles)
    assert is_mapped()
    assert worker.grpo_drop() == {"dropped": True}
    assert not is_mapped()
    assert made.fd


@pytest.fixture
def other_files(tmp_path: Path) -> Iterator[Callable[[str], dict[str, Any]]]:
    """``other_files("file")``: changes that point a handle at something else of this process."""
    opened: list[int] = []

    def make(kind: str) -> dict[str, Any]:
        if kind == "file":
            (tmp_path / "secret").write_bytes(bytes(10**6))
            opened.append(os.open(tmp_path / "secret", os.O_RDONLY))
        elif kind == "pipe":
            opened.extend(os.pipe())
        else:
            opened.append(os.memfd_create("open", os.MFD_ALLOW_SEALING))
            os.ftruncate(opened[-1], 10**6)
        return {"fd": opened[-1]}

    yield make
    for fd in opened:
        os.close(fd)


@pytest.mark.parametrize("kind", ["file", "pipe", "not sealed"])
def test_only_sealed_memory_is_opened(kind: str, other_files) -> None:
    manifest, handles = pack(made := shared.HostMemory())
    with pytest.raises(ValueError, match="is not the trainer's memory, which is sealed"):
        memory.open_bucket(handles[0] | other_files(kind), manifest["buckets"][0], "cpu")
    assert made.fd


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "pickle"}, "of kind 'pickle' is neither"),
        ({"size": 5}, "a handle of 5 bytes is none of a bucket of"),
        ({"key": "00" * memory.KEY_BYTES}, "does not hold the weights that the trainer has sent"),
        ({"key": "00"}, "a key has 16 bytes, not 1"),
        ({"key": "no hex"}, "fromhex"),
        ({"key": 5}, "the handle's key is 5"),
        ({"pid": -1}, "the handle's pid is -1"),
        ({"pid": "1/../self"}, "the handle's pid is '1/../self'"),
        ({"fd": True}, "the handle's fd is True"),
        ({"fd": 10**6}, "cannot be opened"),
        ({"pid": 2**31}, "cannot be opened"),
        ({"start": 2**40}, "ends before byte"),
        ({"start": 1}, "Invalid argument|multiple"),
        ({"kind": "cuda", "handle": "%", "device": "x"}, "base64"),
        ({"kind": "cuda", "handle": "AAAA", "device": "x"}, "a CUDA handle has 64 bytes, not 3"),
    ],
)
def test_a_forged_handle_is_refused_before_anything_is_touched(
    change: dict[str, Any], said: str
) -> None:
    manifest, handles = pack(made := shared.HostMemory())
    worker = Worker()
    worker.grpo_expect(manifest)
    found = worker.grpo_open([*handles[:-1], handles[-1] | change])
    assert found["applied"] is False
    assert any(part in found["error"] for part in said.split("|")), found
    assert not is_mapped()
    assert worker.grpo_apply("run.v1")["applied"] is False
    assert not worker.reloads
    assert "error" in worker.grpo_opens(handles[0] | change)
    assert made.fd


def test_a_process_of_another_container_is_refused_with_a_sentence() -> None:
    """Where process numbers are others, the same number may be somebody else."""
    inside = ("unshare", "--pid", "--fork", "--mount-proc")
    if not shutil.which("unshare") or subprocess.run([*inside, "true"], check=False).returncode:
        pytest.skip("no namespaces may be made here")
    with tempfile.TemporaryFile() as decoy:  # the number of the other's file exists there as well
        manifest, handles = pack(made := shared.HostMemory())
        done = read_elsewhere(manifest, handles, "cpu", before=inside)
        assert decoy.fileno()
    assert done.returncode != 0
    assert "must run on one machine, in one container" in done.stderr
    assert made.fd
