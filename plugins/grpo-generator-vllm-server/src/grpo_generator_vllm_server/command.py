"""`grpo serve`: vLLM servers in the foreground, which end with the command."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from grpo_core.errors import ConfigError

if TYPE_CHECKING:
    from types import FrameType

    from grpo_generator_vllm_server.launch import Plan

EXPOSED = """\
{host} can be reached from other machines. Whoever has the token can sample, replace the model's
weights, load adapters from any folder that the server can read, and stop it; without the token only
/health answers. The connection is not encrypted: put it behind TLS or a private network."""


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("model")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--port", type=click.IntRange(1, 65535), help="Of the first server; else a free one.")
@click.option("--replicas", default=1, show_default=True, help="How many servers.")
@click.option("--device", "devices", multiple=True, help="CUDA_VISIBLE_DEVICES, one per server.")
@click.option("--dtype", default="auto", show_default=True, help="As in vLLM; float32 on a CPU.")
@click.option("--lora-rank", default=0, show_default=True, help="Largest rank of adapters; 0: none")
@click.option("--max-model-len", type=int, help="Most tokens of prompt and completion.")
@click.option("--tensor-parallel-size", default=1, show_default=True, help="GPUs per server.")
@click.option("--python", help="Python of the environment with vllm; else GRPO_VLLM_PYTHON's.")
@click.option("--token-env", default="GRPO_VLLM_TOKEN", help="Variable with the bearer token.")
@click.option("--token-file", help="File with the bearer token, or where to write a new one.")
@click.option("--logs", default="vllm-server", show_default=True, help="Folder for logs.")
@click.option("--start-seconds", default=900.0, show_default=True, help="Longest wait for start.")
@click.option("--show", is_flag=True, help="Print the servers' commands and start nothing.")
def serve(
    model: str,
    args: tuple[str, ...],
    host: str,
    port: int | None,
    replicas: int,
    devices: tuple[str, ...],
    dtype: str,
    lora_rank: int,
    max_model_len: int | None,
    tensor_parallel_size: int,
    python: str | None,
    token_env: str,
    token_file: str | None,
    logs: str,
    start_seconds: float,
    show: bool,
) -> None:
    """Start vLLM servers for MODEL that a run can sample from.

    They listen on this machine only, every route but /health needs a bearer token, and they end
    with this command, also when it is killed. ARGS after `--` go to `vllm serve` as they are.
    """
    from pydantic import ValidationError

    from grpo_generator_vllm_server.config import LaunchSettings

    options = {
        "python": python,
        "replicas": replicas,
        "devices": devices,
        "host": host,
        "port": port,
        "dtype": dtype,
        "max_model_len": max_model_len,
        "tensor_parallel_size": tensor_parallel_size,
        "start_seconds": start_seconds,
        "args": args,
    }
    try:
        settings = LaunchSettings.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    token, said = _token(host, token_env, token_file)
    plans = _plans(model, settings, lora_rank, token, Path(logs))
    if show:
        return _show(plans)
    return _run(plans, said)


def _token(host: str, variable: str, file: str | None) -> tuple[str, str]:
    """The token, and how a config names it.

    Raises:
        ConfigError: others could reach the server, and no token is given.
    """
    from grpo_generator_vllm_server.launch import is_loopback
    from grpo_generator_vllm_server.token import LEAST_LENGTH, new_token, read_token

    path = Path(file) if file else None
    given = read_token(variable, file) if path is None or path.exists() else None
    if not is_loopback(host):
        if given is None or len(given) < LEAST_LENGTH:
            raise ConfigError(
                f"--host {host} lets other machines in, which needs a token of {LEAST_LENGTH} "
                f"characters or more that you give: in the environment variable {variable} or in "
                "an existing --token-file. For instance: openssl rand -hex 32"
            )
        click.echo(EXPOSED.format(host=host), err=True)
    if given is not None:
        return given, f"token_file: {path.resolve()}" if path else f"token_env: {variable}"
    path = path or Path("vllm-server") / "token"
    token = new_token()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    # Created unreadable for others, not made so afterwards.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as opened:
        opened.write(token + "\n")
    return token, f"token_file: {path.resolve()}"


def _plans(model: str, settings: object, lora_rank: int, token: str, logs: Path) -> list[Plan]:
    from grpo_generator_vllm_server.config import LaunchSettings
    from grpo_generator_vllm_server.launch import Plan, choose_ports

    assert isinstance(settings, LaunchSettings)
    devices = settings.devices or (None,) * settings.replicas
    return [
        Plan(
            model=model,
            revision=None,
            settings=settings,
            port=port,
            device=device,
            lora_rank=lora_rank,
            token=token,
            log=logs / f"server-{number}.log",
        )
        for number, (port, device) in enumerate(zip(choose_ports(settings), devices, strict=True))
    ]


def _show(plans: list[Plan]) -> None:
    from grpo_generator_vllm_server.launch import engine_python, shown_command

    for plan in plans:
        click.echo(shown_command(plan, engine_python(plan.settings)))


def _run(plans: list[Plan], token: str) -> None:
    from grpo_generator_vllm_server.client import Server
    from grpo_generator_vllm_server.errors import ServerDownError
    from grpo_generator_vllm_server.launch import Launched

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    launched = [Launched(plan) for plan in plans]
    try:
        for each in launched:
            each.start()
        for each in launched:
            server = Server(each.plan.url, each.plan.token)
            each.wait_ready(server)
            server.close()
        urls = ", ".join(each.plan.url for each in launched)
        click.echo("ready. For the run's config:\n\ngenerator:\n  name: vllm-server")
        click.echo(f"  urls: [{urls}]\n  {token}")
        while True:
            for each in launched:
                if not each.alive:
                    raise ServerDownError(f"the server at {each.plan.url} has ended{each.tail()}")
            time.sleep(1)
    finally:
        for each in launched:
            each.stop()
