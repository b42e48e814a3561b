"""What an engine in the process leaves behind: nothing that it did not find."""

from __future__ import annotations

import os
import random
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from grpo_core.testing.generator_bench import move

pytestmark = pytest.mark.vllm


def surroundings() -> dict[str, Any]:
    return {
        "torch": torch.get_rng_state().tolist(),
        "random": random.getstate(),
        "numpy": str(np.random.get_state()),
        "threads": torch.get_num_threads(),
        "set_num_threads": torch.set_num_threads,
        "grad": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
        "matmul": torch.get_float32_matmul_precision(),
        "excepthook": sys.excepthook,
        "environment": {n: v for n, v in os.environ.items() if not n.startswith("VLLM_")},
        "affinity": os.sched_getaffinity(0),
        "directory": os.getcwd(),
    }


@pytest.fixture
def own_group(tmp_path) -> Iterator[None]:
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1, timeout=timedelta(0, 30))
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_everything_is_left_as_it_was_found(
    lora_rank: int, make_generator, load_policy, make_request
) -> None:
    policy, generator = load_policy(lora_rank=lora_rank), make_generator(sleep=True)
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    found = surroundings()
    for _ in range(2):
        generator.sync(policy.weight_update())
        assert surroundings() == found
        list(generator.generate(make_request()))
        assert surroundings() == found
        with torch.no_grad():
            list(generator.generate(make_request(sampling={"top_p": 0.9, "stop": ("=",)})))
        assert surroundings() == found
        generator.close()
        generator.close()
        assert surroundings() == found
        assert not dist.is_initialized()


def test_engines_follow_each_other_and_the_newer_outlives_the_older(
    make_generator, load_policy, make_request
) -> None:
    """The end of an engine tears down what vLLM shares between all of a process."""
    policy = load_policy()
    before = threading.active_count()
    tokens = []
    for _ in range(2):
        generator = make_generator()
        generator.sync(policy.weight_update())
        groups = sorted(generator.generate(make_request()), key=lambda g: g.index)
        tokens.append([c.token_ids for g in groups for c in g.completions_G])
        generator.close()
    assert tokens[0] == tokens[1]
    assert threading.active_count() <= before + 1
    move(policy)
    generator.sync(policy.weight_update())  # closed, and asked again
    assert len(list(generator.generate(make_request()))) == 3


def test_the_trainers_process_group_outlives_the_engine(
    own_group, make_generator, load_policy, make_request
) -> None:
    policy, generator = load_policy(), make_generator()
    group = dist.group.WORLD
    generator.sync(policy.weight_update())
    list(generator.generate(make_request()))
    generator.close()
    assert dist.group.WORLD is group
    total = torch.ones(3)
    dist.all_reduce(total)
    assert total.tolist() == [1, 1, 1]
    # Also after an engine that could not be made.
    with pytest.raises(Exception, match="cannot start an engine"):
        make_generator(engine={"max_speed": 9}).sync(policy.weight_update())
    assert dist.group.WORLD is group
