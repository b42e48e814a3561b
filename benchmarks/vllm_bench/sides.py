"""Both sides of the comparison, with the same engine and the same settings: a server each, or an
engine each in a process that samples and does nothing else."""

from __future__ import annotations

import json
import os
import random
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from grpo_core import SamplingParams
from grpo_core.policy.weights import named_tensors
from grpo_core.protocols import BuildContext
from grpo_core.types import GenerateRequest, WeightUpdate
from grpo_generator_vllm_server import VLLMServerConfig, VLLMServerGenerator
from grpo_generator_vllm_server.launch import choose_ports

CLIENT = Path(__file__).with_name("trl_client.py")
COLOCATED = Path(__file__).with_name("colocated.py")
START_SECONDS = 300
SMALL = {"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1", "HF_HUB_OFFLINE": "1"}
"""One thread, and no compiler, whose start costs more than it gains with a small model."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is sampled: ``prompts`` prompts of ``prompt_tokens`` (least, most) tokens,
    ``group_size`` completions each, all of ``max_tokens`` tokens."""

    prompts: int
    group_size: int
    prompt_tokens: tuple[int, int]
    max_tokens: int
    vocabulary: int

    def batch(self, number: int) -> list[list[int]]:
        """Token ids of one batch; another for each number, so that no cache knows it."""
        draw = random.Random(number)
        sizes = [draw.randint(*self.prompt_tokens) for _ in range(self.prompts)]
        return [[draw.randrange(3, self.vocabulary) for _ in range(size)] for size in sizes]


class Server:
    """CPU seconds of a server's processes."""

    def __init__(self, root: psutil.Process) -> None:
        self._root = root

    def cpu(self) -> float:
        spent = [p.cpu_times() for p in [self._root, *self._root.children(recursive=True)]]
        return sum(t.user + t.system for t in spent)


class Ours:
    """The generator `vllm-server`, which launches its server."""

    def __init__(self, model: Path, workload: Workload, python: str, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(1)
        policy: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(model)
        self._update = lambda version: WeightUpdate(
            policy_version=version,
            model=policy,
            tokenizer=tokenizer,
            named_tensors=lambda: named_tensors(policy),
        )
        launch = {
            "python": python,
            "dtype": "float32",
            "enforce_eager": True,
            "max_num_seqs": workload.prompts * workload.group_size,
            "kv_cache_memory": "512M",
            "env": SMALL,
        }
        context = BuildContext(role="generator", name="vllm-server", seed=0, run_dir=folder)
        self._workload = workload
        self._generator = VLLMServerGenerator(
            VLLMServerConfig.model_validate({"launch": launch}), context
        )
        before = set(psutil.Process().children())
        self._generator.sync(self._update(0))
        (root,) = set(psutil.Process().children()) - before
        self.server = Server(root)
        self._version = 0

    def sync(self) -> float:
        """Seconds until new weights are in the server."""
        self._version += 1
        began = time.perf_counter()
        self._generator.sync(self._update(self._version))
        return time.perf_counter() - began

    def sample(self, number: int) -> dict[str, float]:
        """Figures of one batch."""
        workload = self._workload
        request = GenerateRequest(
            step=number,
            seed=0,
            prompt_ids_P=tuple(map(tuple, workload.batch(number))),
            prompt_keys_P=tuple(range(workload.prompts)),
            group_size=workload.group_size,
            sampling=SamplingParams(max_tokens=workload.max_tokens),
            eos_token_ids=(),
        )
        before = self.server.cpu()
        cpu, wall = time.process_time(), time.perf_counter()
        groups = list(self._generator.generate(request))
        spent = {"wall": time.perf_counter() - wall, "client_cpu": time.process_time() - cpu}
        tokens = sum(len(c.token_ids) for group in groups for c in group.completions_G)
        return {**spent, "server_cpu": self.server.cpu() - before, "tokens": tokens}

    def close(self) -> None:
        self._generator.close()


class Theirs:
    """TRL's `VLLMClient`, and the server that `trl vllm-serve` starts."""

    def __init__(self, model: Path, workload: Workload, python: str, folder: Path) -> None:
        self._workload = workload
        (port,) = choose_ports(VLLMServerConfig(launch=True).launched)  # type: ignore[arg-type]
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        environment |= {**SMALL, "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
        command = [
            *(python, "-m", "trl.cli.main", "vllm-serve", "--model", str(model)),
            *("--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"),
            *("--enforce_eager", "true", "--kv-cache-memory-bytes", "512M"),
            *("--max-num-seqs", str(workload.prompts * workload.group_size)),
        ]
        log = folder / "trl-server.log"
        self._process = subprocess.Popen(
            command, env=environment, stdout=log.open("w"), stderr=subprocess.STDOUT
        )
        self.server = Server(psutil.Process(self._process.pid))
        try:
            self._wait(f"http://127.0.0.1:{port}", log)
            self._client = subprocess.Popen(
                [python, str(CLIENT), f"http://127.0.0.1:{port}"],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=(folder / "trl-client.log").open("w"),
                text=True,
            )
            self.facts = answered(self._client)
        except BaseException:
            self._end_server()
            raise

    def _wait(self, url: str, log: Path) -> None:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise SystemExit(f"TRL's server has ended:\n{log.read_text()[-3000:]}")
            try:
                with urllib.request.urlopen(f"{url}/health", timeout=2):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        raise SystemExit(f"TRL's server was not ready within {START_SECONDS} s; see {log}")

    def sample(self, number: int) -> dict[str, float]:
        """Figures of one batch."""
        before = self.server.cpu()
        found = asked(self._client, self._workload, number)
        return {**found, "server_cpu": self.server.cpu() - before}

    def close(self) -> None:
        assert self._client.stdin is not None
        self._client.stdin.close()
        self._client.wait(30)
        self._end_server()

    def _end_server(self) -> None:
        # All of it: its engine outlives a killed API server.
        family = psutil.Process(self._process.pid).children(recursive=True)
        self._process.terminate()
        self._process.wait(30)
        _, left = psutil.wait_procs(family, timeout=10)
        for process in left:
            process.kill()


class Colocated:
    """A process with an engine in it; see ``colocated.py``. ``side`` is ``ours`` or ``trl``."""

    def __init__(self, side: str, model: Path, workload: Workload, python: str) -> None:
        # Both take vLLM's own default of what keys and values get, which this sets on a CPU.
        environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
        environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        sequences = str(workload.prompts * workload.group_size)
        self._workload = workload
        self._process = subprocess.Popen(
            [python, str(COLOCATED), side, str(model), sequences],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def sample(self, number: int) -> dict[str, float]:
        """Figures of one batch; the first makes the engine."""
        return asked(self._process, self._workload, number)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def asked(process: subprocess.Popen[str], workload: Workload, number: int) -> dict[str, float]:
    """Have a process sample a batch; its figures."""
    batch = {
        "number": number,
        "prompts": workload.batch(number),
        "group_size": workload.group_size,
        "max_tokens": workload.max_tokens,
        "max_model_len": workload.prompt_tokens[1] + workload.max_tokens,
    }
    assert process.stdin is not None
    process.stdin.write(json.dumps(batch) + "\n")
    process.stdin.flush()
    found: dict[str, float] = answered(process)
    return found


def answered(process: subprocess.Popen[str]) -> Any:
    """The next line that a process says."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"{process.args} has ended; what it said is above, or in trl-client.log")
    return json.loads(line)


@contextmanager
def both(
    model: Path, workload: Workload, ours: str, theirs: str, folder: Path
) -> Iterator[tuple[Ours, Theirs]]:
    """The two sides, both up; what ends, ends with its processes."""
    first = Ours(model, workload, ours, folder)
    try:
        second = Theirs(model, workload, theirs, folder)
        try:
            yield first, second
        finally:
            second.close()
    finally:
        first.close()
