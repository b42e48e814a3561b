"""A real vLLM engine in the process of the tests, where vllm is installed beside the trainer."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from grpo_generator_vllm_colocate import VLLMColocateConfig, VLLMColocateGenerator

# No compiler, whose start costs a small model more than it gains; before vllm is imported.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")


@pytest.fixture(autouse=True)
def _skipped_without_vllm(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("vllm") and importlib.util.find_spec("vllm") is None:
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
