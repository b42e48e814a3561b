"""A real vLLM engine in the process of the tests, where vllm is installed beside the trainer."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from grpo_core import SamplingParams
from grpo_core.demo import checkpoint
from grpo_core.policy import Policy
from grpo_core.settings import LoraSettings, ModelSettings
from grpo_core.types import GeneratedGroup, GenerateRequest, Prompt, Rollout
from grpo_generator_vllm_colocate import VLLMColocateConfig, VLLMColocateGenerator

# No compiler, whose start costs a small model more than it gains; before vllm is imported.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")


def pytest_runtest_setup(item: pytest.Item) -> None:
    # Before any fixture, whatever its scope.
    if item.get_closest_marker("vllm") and importlib.util.find_spec("vllm") is None:
        pytest.skip("vllm is not installed beside the trainer; `make colocate` has both")


@pytest.fixture(scope="session")
def engine_options() -> dict[str, Any]:
    """What a small model on a busy CPU needs; else a share of all memory is reserved."""
    return {"max_num_seqs": 32, "kv_cache_memory": "64MiB", "enforce_eager": True}


@pytest.fixture
def make_generator(
    engine_options: dict[str, Any],
) -> Iterator[Callable[..., VLLMColocateGenerator]]:
    """Generators that are closed at the end."""
    made: list[VLLMColocateGenerator] = []

    def make(**options: Any) -> VLLMColocateGenerator:
        made.append(VLLMColocateGenerator(VLLMColocateConfig(**{**engine_options, **options})))
        return made[-1]

    yield make
    for generator in made:
        generator.close()


@pytest.fixture
def load_policy() -> Callable[..., Policy]:
    """The bundled model, with LoRA where asked for."""

    def load(*, lora_rank: int = 0, name: str = "habit", **changes: Any) -> Policy:
        lora = LoraSettings(r=lora_rank) if lora_rank else None
        settings = ModelSettings(path=str(checkpoint(name)), threads=1, lora=lora, **changes)
        policy = Policy(settings)
        policy.prepare(optimizer_steps=1, temperature=1.0, tokens_per_microbatch=4096)
        return policy

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


@pytest.fixture
def largest_difference() -> Callable[..., float]:
    """Between the log-probs of groups and the policy's own of the same tokens, in nats."""

    def compare(policy: Policy, request: GenerateRequest, groups: list[GeneratedGroup]) -> float:
        assert sorted(g.index for g in groups) == list(range(len(request.prompt_ids_P)))
        rollouts = [
            Rollout(
                prompt=Prompt(id=str(group.index), content=""),
                prompt_ids=request.prompt_ids_P[group.index],
                group=group.index,
                sample=sample,
                spans=completion.spans(group.policy_version),
                text="",
                finish_reason=completion.finish_reason,
            )
            for group in groups
            for sample, completion in enumerate(group.completions_G)
        ]
        own = torch.cat([x.double() for x in policy.logprobs(rollouts)])
        said = torch.tensor([x for r in rollouts for x in r.sampling_logprobs]).double()
        return float((own - said).abs().max())

    return compare
