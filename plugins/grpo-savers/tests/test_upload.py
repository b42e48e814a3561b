"""Uploads against a real server on loopback that fails in every way that a Hub does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hub_server import TOKEN, Fault
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.utils import _http

from grpo_savers.outbox import MODEL_FILES, Destination, Job, chosen, pending, published, put
from grpo_savers.upload import ATTEMPTS, UploadError, empty, upload

WEIGHTS = bytes(range(256)) * 40


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between attempts, by which no test waits itself."""
    found: list[float] = []
    monkeypatch.setattr(_http.time, "sleep", found.append)
    return found


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "final"
    (folder / "merged").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "config.json").write_text('{"a": 1}')
    (folder / "README.md").write_text("---\ntags: [grpo]\n---\n\n# Mine\n")
    (folder / "merged" / "model.safetensors").write_bytes(WEIGHTS[::-1])
    return folder


@pytest.fixture
def send(hub: Any, model: Path, tmp_path: Path) -> Any:
    """Put a job into the outbox and upload it."""

    def go(**other: Any) -> Any:
        to = Destination(
            **{"repo": "me/m", "kind": "model", "private": True, "endpoint": hub.endpoint} | other
        )
        job = put(tmp_path / "run", "final", chosen(model, MODEL_FILES), {}, to)
        pauses: list[float] = []
        return upload(job, sleep=pauses.append), pauses

    return go


def test_what_was_sent_is_what_is_downloaded(send: Any, hub: Any, model: Path, tmp_path: Path):
    url, pauses = send()
    assert url == f"{hub.endpoint}/me/m/tree/main"
    assert pauses == []
    assert hub.repos["model", "me/m"].private
    got = Path(
        snapshot_download("me/m", endpoint=hub.endpoint, local_dir=tmp_path / "got", token=TOKEN)
    )
    for name in ("model.safetensors", "config.json", "README.md", "merged/model.safetensors"):
        assert (got / name).read_bytes() == (model / name).read_bytes()


def test_a_branch_of_its_own(send: Any, hub: Any):
    url, _ = send(revision="step-000040")
    assert url.endswith("/me/m/tree/step-000040")
    assert "model.safetensors" in hub.files("me/m", "step-000040")
    assert hub.files("me/m") == {}


def test_sending_again_sends_nothing(send: Any, hub: Any):
    send()
    before = len(hub.repos["model", "me/m"].commits["main"])
    hub.requests.clear()
    send()
    assert len(hub.repos["model", "me/m"].commits["main"]) == before
    assert not [line for line in hub.requests if "PUT" in line or "/commit/" in line]


def test_shards_of_a_larger_model_are_removed(send: Any, hub: Any, model: Path):
    (model / "model-00001-of-00002.safetensors").write_bytes(b"old")
    send()
    (model / "model-00001-of-00002.safetensors").unlink()
    send()
    assert sorted(hub.files("me/m")) == [
        "README.md",
        "config.json",
        "merged/model.safetensors",
        "model.safetensors",
    ]


@pytest.mark.parametrize(
    "fault",
    [
        Fault("/api/repos/create", 500),
        Fault("/api/validate-yaml", 500),
        Fault("/preupload/", 503),
        Fault("/objects/batch", 500),
        Fault("PUT /lfs/", 500),
        Fault("PUT /lfs/", cut=True),
        Fault("/commit/", 409),
        Fault("/commit/", 500),
        Fault("/commit/", 429, headers={"Retry-After": "7"}),
        Fault("/commit/", cut=True),
        Fault("/preupload/", cut=True),
        Fault("/commit/", 500, times=ATTEMPTS - 1),
        Fault("/commit/", seconds=0.5),
    ],
    ids=str,
)
def test_passing_faults_pass(send: Any, hub: Any, fault: Fault):
    hub.faults.append(fault)
    _, pauses = send()
    assert fault.times == 0
    assert hub.files("me/m")["model.safetensors"] == WEIGHTS
    if "Retry-After" in fault.headers:
        assert max(pauses) == 7.0


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault("/api/repos/create", 401, times=-1), "hf auth login"),
        (Fault("/api/repos/create", 403, times=-1), "write access"),
        (Fault("/commit/", 403, times=-1), "write access"),
        (Fault("/preupload/", 413, times=-1), "too large"),
    ],
    ids=str,
)
def test_what_waiting_does_not_cure_is_said_at_once(send: Any, hub: Any, fault: Fault, said: str):
    hub.faults.append(fault)
    with pytest.raises(UploadError, match=said) as caught:
        send()
    assert TOKEN not in str(caught.value)
    assert sum(fault.match in line for line in hub.requests) == 1


def test_a_server_that_never_recovers_is_given_up(send: Any, hub: Any, tmp_path: Path):
    hub.faults.append(Fault("/commit/", 500, times=-1))
    with pytest.raises(UploadError, match="500"):
        send()
    assert sum("/commit/" in line for line in hub.requests) == ATTEMPTS
    # It still waits, and goes when the server is back.
    hub.faults.clear()
    [url] = empty(tmp_path / "run")
    assert hub.files("me/m")["model.safetensors"] == WEIGHTS
    assert pending(tmp_path / "run") == []
    assert [line["url"] for line in published(tmp_path / "run")] == [url]


def test_weights_that_arrived_are_not_sent_again(send: Any, hub: Any):
    """The second attempt of an upload that was cut goes on where the first one ended."""
    hub.faults.append(Fault("/commit/", 500))
    send()
    assert len([line for line in hub.requests if line.startswith("PUT /lfs/")]) == 2


def test_no_server_at_all(send: Any, hub: Any):
    hub.stop()
    with pytest.raises(UploadError, match=r"ConnectError|Connection"):
        send()


def test_a_public_repository_is_refused_if_private_was_asked_for(send: Any, hub: Any):
    HfApi(endpoint=hub.endpoint).create_repo("me/m", private=False)
    with pytest.raises(UploadError, match="me/m is public"):
        send()
    assert hub.files("me/m") == {}
    send(private=False)
    assert "model.safetensors" in hub.files("me/m")


def test_only_what_is_meant_to_leave_leaves(model: Path, tmp_path: Path):
    for name in ("optimizer.pt", "config.yaml", ".env", "rollouts.parquet", "training_args.bin"):
        (model / name).write_text("secret")
    (model / "deep" / "deeper").mkdir(parents=True)
    (model / "deep" / "deeper" / "config.json").write_text("{}")
    (model / "tokenizer.json").symlink_to("/etc/passwd")
    assert sorted(chosen(model, MODEL_FILES)) == [
        "README.md",
        "config.json",
        "merged/model.safetensors",
        "model.safetensors",
    ]


def test_a_job_outlives_the_files_and_a_newer_one_replaces_it(model: Path, tmp_path: Path):
    to = Destination(repo="me/m", kind="model", private=True)
    put(tmp_path / "run", "final", chosen(model, MODEL_FILES), {}, to)
    put(tmp_path / "run", "step-000001", chosen(model, MODEL_FILES), {}, to)
    job = put(tmp_path / "run", "final", chosen(model, MODEL_FILES), {"x.json": "{}"}, to)
    for path in model.rglob("*.*"):
        path.unlink()
    jobs = pending(tmp_path / "run")
    assert [j.path.name for j in jobs] == ["000002-step-000001", "000003-final"]
    assert jobs[1] == Job(path=job.path, to=to)
    assert (job.files / "model.safetensors").read_bytes() == WEIGHTS
    assert json.loads((job.files / "x.json").read_text()) == {}
