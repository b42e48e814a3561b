"""The bundled policy, requests for it, and a real vLLM server where one can be had."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import torch

import grpo_core
from grpo_core import SamplingParams
from grpo_core.policy.weights import named_tensors
from grpo_core.protocols import BuildContext
from grpo_core.types import Completion, GenerateRequest, WeightUpdate
from grpo_generator_vllm_server import VLLMServerConfig, VLLMServerGenerator
from grpo_generator_vllm_server.client import Server
from grpo_generator_vllm_server.config import PYTHON_VARIABLE, LaunchSettings
from grpo_generator_vllm_server.launch import Launched, Plan, choose_ports

MODEL = Path(grpo_core.__file__).parent / "demo" / "checkpoints" / "habit"
PLAIN = MODEL.with_name("plain")
TOKEN = "a-token-that-only-these-tests-know"
ENGINE = {
    "dtype": "float32",
    "max_num_seqs": 32,
    "kv_cache_memory": "64M",
    "enforce_eager": True,
    "start_seconds": 300,
}
"""What a small model on a busy CPU needs; the engine reserves a share of all memory otherwise."""


@pytest.fixture(scope="session")
def model_folder() -> Path:
    return MODEL


@pytest.fixture
def load_policy() -> Callable[..., tuple[torch.nn.Module, Callable[[int], WeightUpdate]]]:
    """The bundled model, with LoRA where asked for, and what makes its updates."""

    def load(
        lora_rank: int = 0, folder: Path = MODEL
    ) -> tuple[torch.nn.Module, Callable[[int], WeightUpdate]]:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        if lora_rank:
            from peft import LoraConfig, get_peft_model

            config = LoraConfig(r=lora_rank, target_modules="all-linear", task_type="CAUSAL_LM")
            model = get_peft_model(model, config)

        def update(version: int) -> WeightUpdate:
            return WeightUpdate(
                policy_version=version,
                model=model,
                tokenizer=tokenizer,
                named_tensors=lambda: named_tensors(model),
            )

        return model, update

    return load


@pytest.fixture
def make_request() -> Callable[..., GenerateRequest]:
    """Requests of a few prompts that the bundled model understands."""

    def make(**changes: Any) -> GenerateRequest:
        sampling = {"max_tokens": 12, **changes.pop("sampling", {})}
        prompts = changes.pop("prompt_ids_P", tuple((10 + i, 20, 30 + i) for i in range(3)))
        return GenerateRequest(
            **{
                "step": 0,
                "seed": 7,
                "prompt_ids_P": prompts,
                "prompt_keys_P": tuple(range(len(prompts))),
                "group_size": 4,
                "sampling": SamplingParams(**sampling),
                "eos_token_ids": (2,),
                **changes,
            }
        )

    return make


@torch.no_grad()
def _own_logprobs(
    model: torch.nn.Module, prompt: tuple[int, ...], completion: Completion, temperature: float
) -> torch.Tensor:
    row = torch.tensor([[*prompt, *completion.token_ids]])
    logits = model(input_ids=row, use_cache=False).logits[0, len(prompt) - 1 : -1]
    logp = (logits.double() / (temperature or 1.0)).log_softmax(-1)
    return logp.gather(1, row[0, len(prompt) :, None]).squeeze(1)


@pytest.fixture
def largest_difference() -> Callable[..., float]:
    """Between the log-probs of groups and those that a model gives to the same tokens, in nats."""

    def compare(model: torch.nn.Module, request: GenerateRequest, groups: list[Any]) -> float:
        assert sorted(g.index for g in groups) == list(range(len(request.prompt_ids_P)))
        return max(
            float((_own_logprobs(model, request.prompt_ids_P[g.index], c, t) - own).abs().max())
            for t in [request.sampling.temperature]
            for g in groups
            for c in g.completions_G
            for own in [torch.tensor(c.logprobs, dtype=torch.float64)]
        )

    return compare


@pytest.fixture(scope="session")
def engine_python() -> str:
    python = os.environ.get(PYTHON_VARIABLE)
    if not python:
        pytest.skip(f"{PYTHON_VARIABLE} names no Python with vllm; see .ci/vllm")
    return python


@pytest.fixture(scope="session")
def engine_settings(engine_python: str) -> dict[str, Any]:
    """For ``LaunchSettings``; one thread and no compiler, whose start costs more than it gains."""
    env = {"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1", "HF_HUB_OFFLINE": "1"}
    return {**ENGINE, "python": engine_python, "env": env}


@contextmanager
def _running(settings: dict[str, Any], folder: Path, model: Path = MODEL) -> Iterator[Launched]:
    launch = LaunchSettings(**settings, lora_rank=16)
    plan = Plan(
        model=str(model),
        revision=None,
        settings=launch,
        port=choose_ports(launch)[0],
        device=None,
        lora_rank=16,
        token=TOKEN,
        log=folder / "server.log",
    )
    launched = Launched(plan)
    try:
        launched.start()
        server = Server(plan.url, TOKEN)
        launched.wait_ready(server)
        server.close()
        yield launched
    finally:
        launched.stop()


@pytest.fixture(scope="session")
def start_engine(
    engine_settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Any]:
    """``with start_engine(args=(...)) as launched``: a real server with settings of its own."""

    def start(model: Path = MODEL, **changes: Any) -> Any:
        folder = tmp_path_factory.mktemp("odd")
        return _running({**engine_settings, **changes}, folder, model)

    return start


@pytest.fixture(scope="session")
def engine(
    engine_settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Launched]:
    """A real server with the bundled model, whose weights tests replace."""
    with _running(engine_settings, tmp_path_factory.mktemp("engine")) as launched:
        yield launched


@pytest.fixture(scope="session")
def adapter_engine(
    engine_settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Launched]:
    """One with the other bundled model, which stays as it was, for adapters."""
    with _running(engine_settings, tmp_path_factory.mktemp("adapter"), PLAIN) as launched:
        yield launched


@pytest.fixture
def spare_engine(engine_settings: dict[str, Any], tmp_path: Path) -> Iterator[Launched]:
    """Another one with the model of ``engine``, for a test that kills it."""
    with _running(engine_settings, tmp_path / "spare") as launched:
        yield launched


@pytest.fixture(scope="session")
def calculator_engine(
    engine_settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Launched]:
    """One with the policy of grpo-tools' example, which can call a function."""
    example = Path(__file__).parents[2] / "grpo-tools" / "examples" / "calculator"
    folder = tmp_path_factory.mktemp("calculator")
    with _running(engine_settings, folder, example / "checkpoint") as launched:
        yield launched


@pytest.fixture
def sampled_tokens() -> Callable[[Launched], float]:
    """``sampled_tokens(engine)``: how many a server has, since it was started."""

    def count(engine: Launched) -> float:
        answer = httpx.get(
            f"{engine.plan.url}/metrics", headers={"authorization": f"Bearer {TOKEN}"}, timeout=60
        )
        lines = answer.raise_for_status().text.splitlines()
        found = [x for x in lines if x.startswith("vllm:generation_tokens_total")]
        assert found
        return sum(float(line.rpartition(" ")[2]) for line in found)

    return count


@pytest.fixture
def until_sampling(until: Callable[..., bool]) -> Callable[..., None]:
    """``until_sampling(generator)``: its requests are on the servers and have some tokens. Hundreds
    more are still to come, which take many times as long as the wait."""

    def wait(generator: Any, seconds: float = 0.4) -> None:
        assert until(lambda: all(member.gate.inside for member in generator._fleet.members))
        time.sleep(seconds)

    return wait


@pytest.fixture
def make_generator(
    engine: Launched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., VLLMServerGenerator]]:
    """``make_generator(a, b, sync=...)``: one on real servers, by default the one of ``engine``."""
    monkeypatch.setenv("GRPO_VLLM_TOKEN", TOKEN)
    made = []

    def make(*servers: Launched, **options: Any) -> VLLMServerGenerator:
        urls = tuple(each.plan.url for each in servers or (engine,))
        config = VLLMServerConfig(urls=urls, **{"recover_seconds": 0, **options})
        context = BuildContext(role="generator", name="vllm-server", seed=0, run_dir=tmp_path)
        made.append(VLLMServerGenerator(config, context))
        return made[-1]

    yield make
    for generator in made:
        generator.close()
        generator.close()


@pytest.fixture
def move() -> Callable[..., None]:
    """``move(model)`` changes all weights that are trained, or those whose names contain a word."""

    def change(model: torch.nn.Module, name: str = "", *, by: float = 0.05) -> None:
        torch.manual_seed(0)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if name in key and parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * by)

    return change


@pytest.fixture
def left_in_shm() -> Callable[[torch.Tensor], list[str]]:
    """``left_in_shm(tensor)``: names in /dev/shm, new since the test began, that hold its numbers.
    Other programs' names come and go as well."""
    folder = Path("/dev/shm")
    before = {file.name for file in folder.iterdir()}

    def find(tensor: torch.Tensor) -> list[str]:
        numbers = tensor.detach().reshape(-1)[:32].contiguous().numpy().tobytes()
        found = []
        for file in folder.iterdir():
            with contextlib.suppress(OSError):
                if file.name not in before and numbers in file.read_bytes():
                    found.append(file.name)
        return found

    return find


@pytest.fixture
def fake_servers() -> Iterator[Callable[..., list[Any]]]:
    """``fake_servers(2, token=...)``: HTTP servers whose faults can be chosen."""
    path = Path(__file__).with_name("fake_server.py")
    spec = importlib.util.spec_from_file_location("vllm_fake_server", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made: list[Any] = []

    def make(count: int, **options: Any) -> list[Any]:
        made.extend(module.FakeServer(**options) for _ in range(count))
        return made[-count:]

    yield make
    for server in made:
        server.stop()
