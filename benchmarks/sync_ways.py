"""How long weights take to reach a vLLM server on the same machine, by each way that sends all.

A random model is given to one server over and over, the ways in turn. Time is that of the whole
sync, from the call to the answer which weights the server holds; CPU is that of trainer and worker.

``GRPO_VLLM_PYTHON=... python benchmarks/sync_ways.py`` writes ``results/sync_ways.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from step_bench.machine import facts
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from grpo_core.demo import checkpoint
from grpo_core.policy import named_tensors
from grpo_core.types import WeightUpdate
from grpo_generator_vllm_server import LaunchSettings, VLLMServerConfig, VLLMServerGenerator
from grpo_generator_vllm_server.client import Server
from grpo_generator_vllm_server.config import PYTHON_VARIABLE
from grpo_generator_vllm_server.launch import Launched, Plan, choose_ports

RESULT = Path(__file__).parent / "results" / "sync_ways.json"
TOKEN = secrets.token_urlsafe(32)
QUIET = {"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1", "HF_HUB_OFFLINE": "1"}


def save_model(folder: Path, hidden: int, layers: int) -> Qwen3ForCausalLM:
    """A random model with the tokenizer of the demo; 640 and 8 are 84 million parameters."""
    config = Qwen3Config(
        vocab_size=32_000,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        head_dim=64,
        tie_word_embeddings=False,
        max_position_embeddings=512,
    )
    model = Qwen3ForCausalLM(config)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(checkpoint("habit")).save_pretrained(folder)
    return model


def start(folder: Path) -> Launched:
    settings = LaunchSettings(
        python=os.environ[PYTHON_VARIABLE],
        dtype="float32",
        max_num_seqs=8,
        max_model_len=256,
        kv_cache_memory="64M",
        enforce_eager=True,
        env=QUIET,
    )
    plan = Plan(
        model=str(folder / "model"),
        revision=None,
        settings=settings,
        port=choose_ports(settings)[0],
        device=None,
        lora_rank=0,
        token=TOKEN,
        log=folder / "server.log",
    )
    launched = Launched(plan)
    launched.start()
    launched.wait_ready(Server(plan.url, TOKEN))
    return launched


def worker_cpu() -> float:
    """Seconds of this process's engine, which is a child of a child of it."""
    family = psutil.Process().children(recursive=True)
    return sum(sum(p.cpu_times()[:2]) for p in family if "Worker" in p.name())


def one_sync(generator: VLLMServerGenerator, update: WeightUpdate) -> dict[str, float]:
    began = time.perf_counter(), time.process_time(), worker_cpu()
    assert generator.sync(update) == update.policy_version
    ended = time.perf_counter(), time.process_time(), worker_cpu()
    named = zip(("seconds", "trainer_cpu", "worker_cpu"), began, ended, strict=True)
    return {name: after - before for name, before, after in named}


def measure(folder: Path, model: Any, url: str, repeats: int) -> dict[str, Any]:
    ways = {
        "file on disk": {"sync": "file", "sync_folder": str(folder / "sync")},
        "file in /dev/shm": {"sync": "file", "sync_folder": f"/dev/shm/{folder.name}"},
        "broadcast over gloo": {"sync": "broadcast"},
        "ipc through the host's memory": {"sync": "ipc"},
    }
    generators = {
        name: VLLMServerGenerator(VLLMServerConfig(urls=(url,), **way))
        for name, way in ways.items()
    }
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    version = 0
    try:
        for repeat in range(repeats + 1):
            for name, generator in generators.items():
                version += 1
                update = WeightUpdate(
                    policy_version=version,
                    model=model,
                    tokenizer=tokenizer,
                    named_tensors=lambda: named_tensors(model),
                )
                found = one_sync(generator, update)
                if repeat:  # the first one meets the server
                    runs[name].append(found)
    finally:
        for generator in generators.values():
            generator.close()
    return {
        name: {key: statistics.median(run[key] for run in found) for key in found[0]}
        | {"runs": found}
        for name, found in runs.items()
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=640)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["GRPO_VLLM_TOKEN"] = TOKEN
    with tempfile.TemporaryDirectory(prefix="grpo-ways-") as name:
        folder = Path(name)
        model = save_model(folder / "model", arguments.hidden, arguments.layers)
        launched = start(folder)
        try:
            found = measure(folder, model, launched.plan.url, arguments.repeats)
        finally:
            launched.stop()
    parameters = sum(p.numel() for p in model.parameters())
    for way, row in found.items():
        print(way, {key: round(value, 2) for key, value in row.items() if key != "runs"})
    result = {"machine": facts("cpu", 1), "parameters": parameters, "ways": found}
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
