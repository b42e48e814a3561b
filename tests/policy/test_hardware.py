"""Threads and precision: what is chosen, and that it is said why."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from grpo_core.policy import hardware
from grpo_core.policy.hardware import autocast_dtype, set_threads
from grpo_core.settings import ModelSettings


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_threads_that_were_asked_for() -> None:
    assert set_threads(3) == "3, as set"
    assert torch.get_num_threads() == 3


def test_the_environment_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    torch.set_num_threads(2)
    assert set_threads(None) == "2, by OMP_NUM_THREADS"
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("gain", "chosen"), [(1.8, 2), (0.3, 1)])
def test_otherwise_the_faster_one(
    monkeypatch: pytest.MonkeyPatch, gain: float, chosen: int
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(
        hardware, "_seconds", lambda: 1.0 if torch.get_num_threads() == 1 else 1 / gain
    )
    torch.set_num_threads(2)
    assert set_threads(None) == f"{chosen}, since 2 were {gain} times as fast as 1 at the start"
    assert torch.get_num_threads() == chosen


def test_the_trial_itself_times_something(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(2)
    assert "times as fast as 1 at the start" in set_threads(None)


@pytest.mark.parametrize(
    ("gpu", "has_bf16", "changes", "dtype", "why"),
    [
        (False, False, {}, None, "since bf16 is only used on a CPU when it is asked for"),
        (True, True, {}, torch.bfloat16, "since this GPU has bf16"),
        (True, False, {}, None, "since this GPU has no bf16"),
        (True, True, {"dtype": "float64"}, None, "as model.dtype is set"),
        (True, True, {"mixed_precision": "no"}, None, "as set"),
        (False, False, {"mixed_precision": "bf16"}, torch.bfloat16, "as set"),
    ],
)
def test_precision_by_hardware_and_settings(
    monkeypatch: pytest.MonkeyPatch,
    gpu: bool,
    has_bf16: bool,
    changes: dict[str, str],
    dtype: torch.dtype | None,
    why: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: has_bf16)
    settings = ModelSettings.model_validate({"path": "x", **changes})
    assert autocast_dtype(settings) == (dtype, why)
