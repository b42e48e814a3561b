"""No work twice: what is skipped changes nothing, and counts show that it is skipped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo_core import Run, train
from grpo_generator_hf import HFGenerator
from grpo_losses import Dapo, DapoConfig

MakeRun = Callable[..., Run]


def half_without_signal(prompts: list[str], completion_ids: Any, **_: Any) -> list[float]:
    """Prompt "a?" is always worth 1.2, whose mean is not exact in floating point."""
    return [
        1.2 if prompt == "a?" else float(sum(ids) % 7)
        for prompt, ids in zip(prompts, completion_ids, strict=True)
    ]


class Unskipped(Dapo):
    """The same loss without its promise about zero advantages."""

    def __init__(self, config: DapoConfig | None = None) -> None:
        super().__init__(config)
        self.skips_zero_advantage = False


def go(make_run: MakeRun, output: Path, **changes: Any) -> tuple[Run, Any]:
    run = make_run(
        generator=changes.pop("generator", None) or HFGenerator(),
        rewards=[half_without_signal],
        output=output,
        model={"dtype": "float64"},
        **changes,
    )
    return run, train(run)


@pytest.mark.parametrize(
    "train_settings",
    [
        {"steps": 4},
        {"steps": 3, "prompts_per_step": 3, "minibatches_per_step": 3, "passes_per_step": 2},
    ],
)
def test_skipping_rollouts_without_gradient_changes_nothing(
    make_run: MakeRun, tmp_path: Path, counted: list[int], train_settings: dict[str, int]
) -> None:
    skipping, result = go(make_run, tmp_path / "a", train=train_settings)
    fewer = sum(counted)
    counted.clear()
    full, _ = go(make_run, tmp_path / "b", loss=Unskipped(), train=train_settings)
    assert sum(counted) > fewer
    shares = [step["tokens/skipped_share"] for step in result.history]
    assert max(shares) > 0.2
    for a, b in zip(
        skipping.policy.model.parameters(), full.policy.model.parameters(), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_a_step_without_any_signal_still_applies_momentum(
    make_run: MakeRun, tmp_path: Path
) -> None:
    calls: list[int] = []

    def first_step_only(completion_ids: Any, **_: Any) -> list[float]:
        calls.append(1)
        return [float(sum(ids) % 7) if len(calls) == 1 else 1.0 for ids in completion_ids]

    run = make_run(generator=HFGenerator(), rewards=[first_step_only], train={"steps": 2})
    versions: list[list[torch.Tensor]] = []
    step = run.policy.step

    def watched() -> Any:
        versions.append([p.detach().clone() for p in run.policy.model.parameters()])
        return step()

    run.policy.step = watched  # type: ignore[method-assign]
    result = train(run)
    assert result.history[1]["tokens/skipped_share"] == 1.0
    before_last = versions[1]
    assert any(
        not torch.equal(a, b)
        for a, b in zip(before_last, run.policy.model.parameters(), strict=True)
    )


def test_regularised_losses_skip_nothing() -> None:
    assert Dapo().skips_zero_advantage
    assert not Dapo(DapoConfig(kl_coef=0.1)).skips_zero_advantage
    assert not Dapo(DapoConfig(entropy_coef=0.1)).skips_zero_advantage


def test_the_samplers_logprobs_are_not_computed_again(
    make_run: MakeRun, tmp_path: Path, counted: list[int]
) -> None:
    """In one process the sampler's own log-probs serve as old ones, to rounding."""
    settings = {"prompts_per_step": 4, "minibatches_per_step": 2, "passes_per_step": 2, "steps": 3}
    known, _ = go(make_run, tmp_path / "a", train=settings, loss=Unskipped())
    fewer = len(counted)
    counted.clear()
    HFGenerator.exact_logprobs = False
    try:
        computed, result = go(make_run, tmp_path / "b", train=settings, loss=Unskipped())
    finally:
        HFGenerator.exact_logprobs = True
    # One pass less per step: 4 for the updates, 1 for old log-probs, 1 probe of the layout.
    assert len(counted) - fewer == 3
    assert "time/old_logprobs" in result.history[0]
    for a, b in zip(
        known.policy.model.parameters(), computed.policy.model.parameters(), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_a_sampler_that_differs_is_corrected_at_no_extra_pass(
    make_run: MakeRun, tmp_path: Path, counted: list[int]
) -> None:
    """TRL pays a full forward for the same correction when strictly on-policy."""

    class Rounded(HFGenerator):
        """As if by other kernels: log-probs to two digits."""

        exact_logprobs = False

        def generate(self, request: Any) -> Any:
            for group in super().generate(request):
                completions = tuple(
                    replace(c, logprobs=tuple(round(x, 2) for x in c.logprobs))
                    for c in group.completions_G
                )
                yield replace(group, completions_G=completions)

    _, exact = go(make_run, tmp_path / "a", loss=Unskipped())
    passes = len(counted)
    counted.clear()
    _, corrected = go(make_run, tmp_path / "b", loss=Unskipped(), generator=Rounded())
    assert len(counted) == passes
    assert "ratio/sampler_weight" not in exact.history[0]
    weight = corrected.history[0]["ratio/sampler_weight"]
    assert weight != 1
    assert weight == pytest.approx(1, abs=0.005)


def test_a_task_is_not_asked_for_its_prompts_in_every_step(
    make_run: Callable[..., Run], list_task: Any
) -> None:
    """To draw or to open them may take longer than a step."""

    def asked(steps: int) -> int:
        calls = 0

        class Counts(list_task):  # type: ignore[misc]
            def train_prompts(self) -> Any:
                nonlocal calls
                calls += 1
                return super().train_prompts()

        output = make_run().output.parent / f"run-{steps}"
        train(make_run(task=Counts(["a?", "b?"]), train={"steps": steps}, output=output))
        return calls

    assert asked(4) == asked(1)
