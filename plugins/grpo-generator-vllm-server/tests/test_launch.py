"""Starting servers: safe defaults, clear refusals, and `grpo serve` itself."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from grpo_core.errors import ConfigError
from grpo_generator_vllm_server import LaunchSettings
from grpo_generator_vllm_server.client import Server
from grpo_generator_vllm_server.errors import ServerDownError
from grpo_generator_vllm_server.launch import Launched, Plan, choose_ports, is_loopback
from grpo_generator_vllm_server.start import start_servers


@pytest.fixture
def make_plan(tmp_path: Path) -> Callable[..., Plan]:
    def make(lora_rank: int = 0, port: int = 8123, **options: Any) -> Plan:
        return Plan(
            model="some/model",
            revision=None,
            settings=LaunchSettings(**options),
            port=port,
            device=None,
            lora_rank=lora_rank,
            token="the-token",
            log=tmp_path / "server.log",
        )

    return make


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


def serve(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "grpo_core.cli", "serve", *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={k: v for k, v in os.environ.items() if k != "GRPO_VLLM_TOKEN"} | environment,
    )


def test_the_token_is_in_the_environment_and_not_in_the_arguments(make_plan, monkeypatch) -> None:
    monkeypatch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")
    monkeypatch.setenv("RANK", "3")
    plan = make_plan()
    environment = plan.environment("/engine/python", "me")
    assert environment["GRPO_VLLM_TOKEN"] == environment["VLLM_API_KEY"] == "the-token"
    assert "the-token" not in " ".join(plan.arguments())
    assert "the-token" not in repr(plan)
    assert "VLLM_ALLOW_INSECURE_SERIALIZATION" not in environment
    assert "RANK" not in environment
    words = " ".join(plan.arguments())
    assert "--host 127.0.0.1" in words
    assert "--logprobs-mode processed_logprobs" in words
    assert "--generation-config vllm" in words


@pytest.mark.parametrize(
    ("args", "instead"),
    [
        (("--host=0.0.0.0",), "option of that name"),
        (("--hos", "0.0.0.0"), "option of that name"),
        (("--api_key", "x"), "option of that name"),
        (("--middleware", "a"), "option of that name"),
        (("--max-num-seqs", "4", "--ssl-certfile", "a.pem"), "TLS proxy"),
        (("--data-parallel-size", "2"), "Use replicas"),
    ],
)
def test_args_cannot_undo_what_is_safe(make_plan, args: tuple[str, ...], instead: str) -> None:
    with pytest.raises(ConfigError, match=f"must not give --.*{instead}"):
        make_plan(args=args).arguments()
    kept = ("--max-model-len", "64", "--hf-overrides", "{}")
    assert make_plan(args=kept).arguments()[-4:] == list(kept)


def test_adapters_get_room(make_plan) -> None:
    words = " ".join(make_plan(lora_rank=12).arguments())
    assert "--enable-lora --max-lora-rank 16" in words
    assert "--enable-lora" not in make_plan().arguments()


@pytest.mark.parametrize(
    ("host", "only_here"),
    [
        *((host, True) for host in ("127.0.0.1", "127.8.8.8", "localhost", "::1")),
        *((host, False) for host in ("0.0.0.0", "10.0.0.1", "::", "gpu-3")),
    ],
)
def test_what_is_loopback(host: str, only_here: bool) -> None:
    assert is_loopback(host) is only_here


def test_a_port_that_is_taken_is_said(taken: int) -> None:
    with pytest.raises(ConfigError, match=f"port {taken} of 127.0.0.1 cannot be used"):
        choose_ports(LaunchSettings(port=taken))
    ports = choose_ports(LaunchSettings(replicas=3))
    assert len(set(ports)) == 3
    assert taken not in ports


def test_a_run_does_not_open_servers_to_others(load_policy, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="loopback only"):
        start_servers(LaunchSettings(host="0.0.0.0"), load_policy()[1](0), tmp_path)


def test_without_vllm_it_is_said_how_to_get_it(load_policy, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("GRPO_VLLM_PYTHON", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="GRPO_VLLM_PYTHON"):
        start_servers(LaunchSettings(), load_policy()[1](0), tmp_path)
    with pytest.raises(ConfigError, match="no Python '/not/there'"):
        start_servers(LaunchSettings(python="/not/there"), load_policy()[1](0), tmp_path)


def test_a_server_that_does_not_start_shows_the_end_of_its_log(make_plan, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'CUDA error: no kernel image'\nexit 3\n")
    python.chmod(0o755)
    (port,) = choose_ports(LaunchSettings())
    launched = Launched(make_plan(port=port, python=str(python)))
    launched.start()
    try:
        with pytest.raises(ServerDownError, match="ended while it started") as caught:
            launched.wait_ready(Server(launched.plan.url, "the-token"))
    finally:
        launched.stop()
    assert "CUDA error: no kernel image" in str(caught.value)
    assert str(launched.plan.log) in str(caught.value)


def test_a_stranger_on_the_port_is_not_taken_for_ours(make_plan, fake_servers, tmp_path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nsleep 30\n")
    python.chmod(0o755)
    (port,) = choose_ports(LaunchSettings())
    launched = Launched(make_plan(port=port, python=str(python)))
    launched.start()
    (stranger,) = fake_servers(1)
    try:
        with pytest.raises(ServerDownError, match="instance first"):
            launched.wait_ready(Server(stranger.url, "the-token"))
    finally:
        launched.stop()
    launched.stop()


def test_serve_beyond_loopback_needs_a_token_of_ones_own() -> None:
    done = serve("some/model", "--host", "0.0.0.0", "--show")
    assert done.returncode == 2
    assert "lets other machines in, which needs a token" in done.stderr
    assert serve("m", "--host", "0.0.0.0", "--show", GRPO_VLLM_TOKEN="short").returncode == 2
    done = serve(
        *("m", "--host", "0.0.0.0", "--python", sys.executable, "--show"),
        GRPO_VLLM_TOKEN="long-enough-to-be-a-token",
    )
    assert done.returncode == 0, done.stderr
    assert "replace the model's\nweights" in done.stderr
    assert "long-enough" not in done.stdout + done.stderr
    assert "--middleware grpo_vllm_guard.Guard" in done.stdout


def test_serve_makes_a_token_that_only_its_owner_can_read(tmp_path: Path) -> None:
    file = tmp_path / "token"
    words = ("some/model", "--token-file", str(file), "--python", sys.executable, "--show")
    assert serve(*words).returncode == 0
    assert file.stat().st_mode & 0o777 == 0o600
    first = file.read_text()
    assert len(first.strip()) >= 43
    assert serve(*words).returncode == 0
    assert file.read_text() == first  # what exists is used


def test_serve_says_what_is_wrong(taken: int, tmp_path: Path) -> None:
    words = ("m", "--token-file", str(tmp_path / "t"), "--python", sys.executable)
    done = serve(*words, "--port", str(taken))
    assert done.returncode == 2
    assert f"port {taken}" in done.stderr
    done = serve(*words, "--replicas", "2", "--device", "0")
    assert done.returncode == 2
    assert "1 entries for 2 replicas" in done.stderr
