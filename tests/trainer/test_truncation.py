"""Log-probs mean one thing: sampler and trainer agree whatever is cut off when sampling."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo_core import Run, SamplingParams, train
from grpo_core.builtin.jsonl import JsonlMetrics
from grpo_core.errors import ConfigError, SyncError
from grpo_core.hookspecs import hookimpl
from grpo_core.types import LossOutput, Rollout
from grpo_generator_hf import HFGenerator
from grpo_losses import Dapo

MakeRun = Callable[..., Run]

TRANSFORMS: dict[str, dict[str, Any]] = {
    "top_p": {"top_p": 0.7},
    "top_k": {"top_k": 5},
    "min_p": {"min_p": 0.1},
    "penalty": {"repetition_penalty": 1.5},
    "all": {"top_p": 0.9, "top_k": 20, "min_p": 0.02, "repetition_penalty": 1.2},
}


def varied(completion_ids: Any, **_: Any) -> list[float]:
    return [float(sum(ids) % 7) for ids in completion_ids]


def go(make_run: MakeRun, *, sampling: dict[str, Any], **changes: Any) -> tuple[Run, Any]:
    parts = {"generator": HFGenerator(), "rewards": [varied], "model": {"dtype": "float64"}}
    drawn = SamplingParams(**{"max_tokens": 12, "temperature": 0.8, **sampling})
    run = make_run(**{**parts, "sampling": drawn, **changes})
    return run, train(run)


class Processed(HFGenerator):
    """Reports the log-probs that tokens were drawn with, as servers do, and keeps silent on it."""

    def generate(self, request: Any) -> Iterator[Any]:
        for group in super().generate(request):
            completions = tuple(
                dataclasses.replace(
                    c,
                    logprobs=tuple(x - k for x, k in zip(c.logprobs, c.kept_logmass, strict=True)),
                    kept_logmass=None,
                )
                if c.kept_logmass is not None
                else c
                for c in group.completions_G
            )
            yield dataclasses.replace(group, completions_G=completions)


class SaysSo(Processed):
    processed_logprobs = True


@pytest.mark.parametrize("sampling", TRANSFORMS.values(), ids=TRANSFORMS)
def test_on_policy_the_ratio_is_1_and_the_sampler_agrees(
    make_run: MakeRun, sampling: dict[str, Any]
) -> None:
    seen: list[Rollout] = []

    class Watch:
        @hookimpl
        def grpo_rollouts_scored(self, event: Any) -> None:
            seen.extend(event.rollouts_B)

    run, result = go(make_run, sampling=sampling, observers=[Watch()])
    for step in result.history:
        assert step["ratio/min"] == step["ratio/mean"] == step["ratio/max"] == 1.0
        # Transformers' norms round to float32 on the way, in another order.
        assert step["ratio/sampler_mismatch_max"] < 1e-6
    if not run.sampling.truncates:
        assert "sampling/kept_mass" not in step
        assert all(r.kept_logmass is None for r in seen)
        return
    kept = [torch.tensor(r.kept_logmass).exp() for r in seen]
    assert [len(k) for k in kept] == [r.action_count for r in seen]
    mean = torch.cat(kept[-4:]).mean()
    assert result.history[-1]["sampling/kept_mass"] == pytest.approx(float(mean), rel=1e-6)
    assert mean < 0.99


class OtherTemperature(HFGenerator):
    def generate(self, request: Any) -> Iterator[Any]:
        other = request.sampling.model_copy(update={"temperature": 0.4})
        yield from super().generate(dataclasses.replace(request, sampling=other))


class OtherWeights(HFGenerator):
    """Takes the first weights for the latest."""

    def sync(self, update: Any) -> int:
        if self._held is None:
            super().sync(dataclasses.replace(update, model=copy.deepcopy(update.model)))
        assert self._held is not None
        self._held = dataclasses.replace(self._held, policy_version=update.policy_version)
        return update.policy_version


def require_found(make_run: MakeRun, generator: HFGenerator, sampling: dict[str, Any]) -> None:
    with pytest.raises(SyncError, match="disagree about the same tokens"):
        go(
            make_run,
            sampling=sampling,
            generator=generator,
            optimizer={"learning_rate": 0.05},
            train={"steps": 5, "max_sampler_mismatch": 0.001},
        )


@pytest.mark.parametrize("generator", [OtherTemperature, OtherWeights, Processed])
@pytest.mark.parametrize("sampling", [{"top_p": 0.7}, {"top_k": 5}], ids=["top_p", "top_k"])
def test_a_sampler_that_is_not_the_policy_is_found_under_truncation(
    make_run: MakeRun, generator: type[HFGenerator], sampling: dict[str, Any]
) -> None:
    require_found(make_run, generator(), sampling)


@pytest.mark.parametrize("sampling", TRANSFORMS.values(), ids=TRANSFORMS)
def test_old_log_probs_of_later_minibatches_are_the_samplers(
    make_run: MakeRun,
    tmp_path: Path,
    counted: list[int],
    monkeypatch: pytest.MonkeyPatch,
    sampling: dict[str, Any],
) -> None:
    """They come without a forward pass, and lead to the weights of those computed anew."""

    def both(name: str) -> tuple[Run, Any, int]:
        counted.clear()
        settings = {"prompts_per_step": 4, "minibatches_per_step": 2, "steps": 3}
        run, result = go(make_run, sampling=sampling, train=settings, output=tmp_path / name)
        return run, result, len(counted)

    known, _, fewer = both("known")
    monkeypatch.setattr(HFGenerator, "exact_logprobs", False)
    computed, result, passes = both("computed")
    assert passes - fewer == 3
    assert result.history[0]["ratio/max"] > 1
    for a, b in zip(
        known.policy.model.parameters(), computed.policy.model.parameters(), strict=True
    ):
        # AdamW divides by small gradients, and norms round to float32.
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


class Compares(Dapo):
    def __init__(self) -> None:
        super().__init__()
        self.needs |= {"sampling_logprobs"}


@pytest.mark.parametrize("sampling", [{"min_p": 0.1}, {"repetition_penalty": 1.5}])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss": Compares()}, "Compares compares trainer and sampler"),
        (
            {"train": {"dynamic_sampling": {"replay_groups": 2}}},
            "ratio of tokens of older weights would be wrong",
        ),
    ],
)
def test_what_needs_the_policys_log_probs_is_refused_where_the_generator_has_none(
    make_run: MakeRun,
    tmp_path: Path,
    sampling: dict[str, Any],
    changes: dict[str, Any],
    words: str,
) -> None:
    with pytest.raises(ConfigError, match=words):
        go(make_run, sampling=sampling, generator=SaysSo(), **changes)
    for fine in ({"generator": HFGenerator(), "sampling": sampling}, {"sampling": {}}):
        parts = {"generator": HFGenerator(), "output": tmp_path / str(len(fine)), **changes, **fine}
        go(make_run, **parts)


def test_a_canary_stands_in_for_log_probs_that_are_not_the_policys(
    make_run: MakeRun, tmp_path: Path, counted: list[int]
) -> None:
    passes = []
    for generator in (HFGenerator(), SaysSo()):
        counted.clear()
        run, result = go(
            make_run,
            sampling={"top_p": 0.5},
            generator=generator,
            observers=[JsonlMetrics()],
            train={"prompts_per_step": 4, "minibatches_per_step": 2, "max_sampler_mismatch": 1e-4},
            output=tmp_path / type(generator).__name__,
        )
        passes.append(len(counted))
        for step in result.history:
            assert step["ratio/sampler_mismatch_max"] < 1e-6
    # It costs what an exact one saves: in each of the two steps a pass for old log-probs, and one
    # for the canary.
    assert passes[1] - passes[0] == 4
    assert noticed(run) == []


class Stale(OtherWeights, SaysSo):
    pass


class Cold(SaysSo, OtherTemperature):
    pass


@pytest.mark.parametrize("generator", [Stale, Cold])
@pytest.mark.parametrize("sampling", TRANSFORMS.values(), ids=TRANSFORMS)
def test_the_canary_finds_a_sampler_that_is_not_the_policy(
    make_run: MakeRun, generator: type[HFGenerator], sampling: dict[str, Any]
) -> None:
    require_found(make_run, generator(), sampling)


def test_without_a_bound_there_is_neither_canary_nor_comparison(make_run: MakeRun) -> None:
    asked: list[Any] = []

    class Counts(SaysSo):
        def generate(self, request: Any) -> Iterator[Any]:
            asked.append(request)
            yield from super().generate(request)

    _, result = go(
        make_run,
        sampling={"top_p": 0.5},
        generator=Counts(),
        train={"max_sampler_mismatch": None},
    )
    assert len(asked) == len(result.history)
    assert all("ratio/sampler_mismatch_max" not in step for step in result.history)


def noticed(run: Run) -> list[dict[str, Any]]:
    lines = (run.output / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["event"] == "notice"]


def test_training_with_a_penalty_is_said_to_be_off_policy_once(
    make_run: MakeRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, _ = go(make_run, sampling={"repetition_penalty": 1.2}, observers=[JsonlMetrics()])
    (notice,) = noticed(run)
    assert (notice["code"], notice["step"]) == ("off-policy-sampling", 0)
    assert "repetition_penalty is 1.2" in notice["text"]
    with caplog.at_level(logging.WARNING, logger="grpo_core"):
        go(make_run, sampling={"repetition_penalty": 1.2}, output=tmp_path / "unobserved")
    assert caplog.text.count("off-policy") == 1
    quiet, _ = go(
        make_run, sampling={"top_p": 0.9}, observers=[JsonlMetrics()], output=tmp_path / "quiet"
    )
    assert noticed(quiet) == []


def test_the_gradient_keeps_its_size_when_much_is_cut_off(make_run: MakeRun) -> None:
    """On-policy each token counts with weight 1, not with the share of mass that was kept: the
    gradient of the loss in a token's log-prob is its advantage."""
    gradients: list[torch.Tensor] = []

    class Watched(Dapo):
        def __call__(self, tokens: Any) -> LossOutput:
            leaf_N = tokens.logprobs_N.detach().requires_grad_()
            loss_N = super().__call__(dataclasses.replace(tokens, logprobs_N=leaf_N)).loss_N
            (gradient_N,) = torch.autograd.grad(loss_N.sum(), leaf_N)
            gradients.append(gradient_N + tokens.advantages_N)
            return super().__call__(tokens)

    _, result = go(
        make_run,
        sampling={"top_p": 0.3},
        loss=Watched(),
        train={"prompts_per_step": 4, "minibatches_per_step": 2, "steps": 1},
        optimizer={"learning_rate": 1e-12},
    )
    assert result.history[0]["sampling/kept_mass"] < 0.7
    # The second minibatch has the sampler's log-probs for its old ones.
    assert len(gradients) == 2
    assert torch.cat(gradients).abs().max() < 1e-6
