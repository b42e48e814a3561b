"""Reference log-probs are computed once, not at all when nothing needs them, and not again where
they are known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo_core import Run, train
from grpo_core.errors import PluginError
from grpo_generator_hf import HFGenerator
from grpo_losses import Dapo, DapoConfig
from grpo_references import (
    AdapterOffReference,
    EmaConfig,
    EmaReference,
    FrozenReference,
    PeriodicConfig,
    PeriodicReference,
)

MakeRun = Callable[..., Run]
WITH_KL = DapoConfig(kl_coef=0.1)


def varied(completion_ids: Any, **_: Any) -> list[float]:
    return [float(sum(ids) % 7) for ids in completion_ids]


class Watched:
    """Passes everything on, and counts; ``silent`` hides whose weights it has."""

    def __init__(self, inner: Any, *, silent: bool = False) -> None:
        self.inner = inner
        self.silent = silent
        self.calls: list[str] = []

    @property
    def equals_policy_version(self) -> int | None:
        return None if self.silent else self.inner.equals_policy_version

    def start(self, policy: Any) -> None:
        self.calls.append("start")
        self.inner.start(policy)

    def logprobs(self, rollouts: Any) -> Any:
        if rollouts:
            self.calls.append("logprobs")
        return self.inner.logprobs(rollouts)

    def step_end(self, step: int) -> None:
        self.calls.append("step_end")
        self.inner.step_end(step)


def go(make_run: MakeRun, output: Path, reference: Any, **changes: Any) -> tuple[Run, Any]:
    train_settings = {"steps": 3, "prompts_per_step": 4, **changes.pop("train", {})}
    run = make_run(
        generator=HFGenerator(),
        rewards=[varied],
        loss=changes.pop("loss", Dapo(WITH_KL)),
        reference=reference,
        output=output,
        train=train_settings,
        **changes,
    )
    return run, train(run)


def test_without_a_kl_term_a_reference_is_not_even_started(
    make_run: MakeRun, tmp_path: Path, counted: list[int]
) -> None:
    go(make_run, tmp_path / "a", None, loss=Dapo())
    forwards = len(counted)
    counted.clear()
    reference = Watched(FrozenReference())
    _, result = go(make_run, tmp_path / "b", reference, loss=Dapo())
    assert reference.calls == []
    assert len(counted) == forwards
    assert "time/reference" not in result.history[0]


def test_it_is_asked_once_per_rollout_batch(make_run: MakeRun, tmp_path: Path) -> None:
    reference = Watched(FrozenReference(), silent=True)
    go(
        make_run,
        tmp_path / "a",
        reference,
        train={"minibatches_per_step": 2, "passes_per_step": 2},
    )
    assert reference.calls == ["start", *["logprobs", "step_end"] * 3]


@pytest.mark.parametrize(
    ("make", "lora", "saved"),
    [
        (FrozenReference, False, 1),
        (AdapterOffReference, True, 1),
        (lambda: PeriodicReference(PeriodicConfig(every=1)), False, 3),
        (lambda: PeriodicReference(PeriodicConfig(every=2)), False, 2),
        (lambda: EmaReference(EmaConfig(alpha=0.5, every=2)), False, 1),
    ],
)
def test_while_it_is_the_policy_the_samplers_logprobs_are_its_own(
    make_run: MakeRun,
    tmp_path: Path,
    counted: list[int],
    make: Callable[[], Any],
    lora: bool,
    saved: int,
) -> None:
    model = {"lora": {"r": 2}} if lora else {}
    torch.manual_seed(0)
    known, result = go(make_run, tmp_path / "a", Watched(make()), model=model)
    fewer = len(counted)
    counted.clear()
    torch.manual_seed(0)
    computed, expected = go(make_run, tmp_path / "b", Watched(make(), silent=True), model=model)
    assert len(counted) - fewer == saved
    for a, b in zip(result.history, expected.history, strict=True):
        assert a["kl/reference"] == pytest.approx(b["kl/reference"], abs=1e-6)
    for a, b in zip(
        known.policy.model.parameters(), computed.policy.model.parameters(), strict=True
    ):
        # AdamW divides by small gradients, which makes 1e-7 in a log-prob more in a weight.
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_sampler_that_is_not_exact_is_not_taken_at_its_word(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HFGenerator, "exact_logprobs", False)
    reference = Watched(FrozenReference())
    go(make_run, tmp_path / "a", reference)
    assert reference.calls.count("logprobs") == 3


def test_a_reference_that_loses_rollouts(make_run: MakeRun, tmp_path: Path) -> None:
    class OneShort(FrozenReference):
        equals_policy_version = None

        def logprobs(self, rollouts: Any) -> Any:
            self.equals_policy_version = None
            return super().logprobs(rollouts)[1:] if rollouts else []

        def start(self, policy: Any) -> None:
            super().start(policy)
            self.equals_policy_version = None

    with pytest.raises(PluginError, match="OneShort returned log-probs of 7 rollouts; 8 were"):
        go(make_run, tmp_path / "a", OneShort())
