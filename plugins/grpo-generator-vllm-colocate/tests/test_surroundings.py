"""Everything that vLLM changes for its process is put back; without vLLM."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from grpo_generator_vllm_colocate.surroundings import default_group_kept, left_as_found


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_all_of_it_is_put_back_also_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    monkeypatch.delenv("VLLM_KEPT", raising=False)
    set_threads, hook = torch.set_num_threads, sys.excepthook
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = draws()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)

    def vandalise() -> None:
        random.seed(0), np.random.seed(0), torch.manual_seed(0)
        torch.set_num_threads = lambda count: None
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.bfloat16)
        sys.excepthook = print
        os.environ.update(LOCAL_WORLD_SIZE="1", LD_PRELOAD="libgomp.so", VLLM_KEPT="yes")
        raise KeyError("in the middle")

    with pytest.raises(KeyError, match="in the middle"), left_as_found():
        vandalise()
    monkeypatch.setenv("VLLM_KEPT", os.environ["VLLM_KEPT"])
    assert draws() == expected
    assert torch.set_num_threads is set_threads
    assert sys.excepthook is hook
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32
    assert os.environ["LOCAL_WORLD_SIZE"] == "2"
    assert "LD_PRELOAD" not in os.environ


def test_the_default_group_outlives_a_call_that_would_end_it(tmp_path: Path) -> None:
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        other: Any = dist.new_group([0])
        with default_group_kept():
            dist.destroy_process_group(other)
            dist.destroy_process_group()
            dist.destroy_process_group(dist.group.WORLD)
        assert dist.is_initialized()
        total = torch.ones(2)
        dist.all_reduce(total)
        with pytest.raises(KeyError):  # it knows the one that was destroyed no more
            dist.get_process_group_ranks(other)
    finally:
        dist.destroy_process_group()
