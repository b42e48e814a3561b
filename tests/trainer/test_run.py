"""Whole runs, composed from objects: what they learn, count, report and leave behind."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from grpo_core import EvaluationSettings, Run, hookimpl, train
from grpo_core.types import Rollout
from grpo_generator_hf import HFGenerator

MakeRun = Callable[..., Run]


def untimed(history: Any) -> list[dict[str, float]]:
    return [{k: v for k, v in step.items() if not k.startswith("time/")} for step in history]


def test_rewarded_text_becomes_more_likely(make_run: MakeRun) -> None:
    run = make_run(train={"steps": 8})
    prompt = run.task.train_prompts()[0]

    def preference() -> float:
        return logprob("yes") - logprob("no")

    def logprob(text: str) -> float:
        ids = run.policy.encoder.encode(prompt)
        completion = tuple(run.policy.tokenizer(text)["input_ids"])
        row = torch.tensor([[*ids, *completion]])
        with torch.no_grad():
            logp = run.policy.model(row).logits[0].log_softmax(-1)
        return sum(float(logp[len(ids) - 1 + i, t]) for i, t in enumerate(completion))

    before = preference()
    result = train(run)
    assert result.status == "finished"
    assert result.steps_done == 8
    assert result.history[0]["reward/mean"] == 0.5
    assert preference() > before + 0.1


def test_the_same_seed_gives_the_same_run_and_another_seed_another(
    make_run: MakeRun, tmp_path: Path
) -> None:
    def go(name: str, seed: int) -> list[dict[str, float]]:
        run = make_run(
            generator=HFGenerator(),
            train={"seed": seed},
            rewards=[lambda completion_ids, **_: [float(sum(c) % 7) for c in completion_ids]],
            output=tmp_path / name,
        )
        return untimed(train(run).history)

    assert go("a", 1) == go("b", 1)
    assert go("c", 2) != go("d", 1)


def test_minibatches_and_passes_count_optimizer_steps(make_run: MakeRun) -> None:
    run = make_run(
        train={"prompts_per_step": 4, "minibatches_per_step": 2, "passes_per_step": 3, "steps": 2}
    )
    result = train(run)
    assert run.policy.version == 2 * 2 * 3
    # Old log-probs are those of the start of the step: later minibatches see a moved policy.
    assert result.history[0]["ratio/max"] > 1.0
    assert result.history[0]["ratio/sampler_mismatch_kl"] < 1e-9


def test_old_logprobs_of_later_minibatches_are_from_before_the_update(make_run: MakeRun) -> None:
    run = make_run(train={"prompts_per_step": 4, "minibatches_per_step": 2, "passes_per_step": 2})
    seen: list[tuple[int, float]] = []

    class Watch:
        needs = frozenset({"old_logprobs"})

        def __call__(self, tokens: Any) -> Any:
            # The scripted generator reports the policy's own log-probs before the update.
            drift = (tokens.old_logprobs_N - tokens.sampling_logprobs_N).abs().max()
            seen.append((run.policy.version, float(drift)))
            return run_loss(tokens)

    run_loss = run._loss
    run._loss = Watch()
    run.needs = Watch.needs
    train(run)
    assert len({version for version, _ in seen}) == 8
    assert max(drift for _, drift in seen) < 1e-5


def test_a_loss_that_needs_no_old_logprobs_costs_no_forward_pass(make_run: MakeRun) -> None:
    def reinforce(tokens: Any) -> Any:
        from grpo_core.types import LossOutput

        return LossOutput(loss_N=-tokens.advantages_N * tokens.logprobs_N)

    run = make_run(loss=reinforce, train={"minibatches_per_step": 2})
    result = train(run)
    assert "time/old_logprobs" not in result.history[0]


def test_the_weights_of_a_step_add_up(make_run: MakeRun) -> None:
    """A loss of 1 per token must come out as 1: the token mean of all microbatches."""
    from grpo_core.types import LossOutput

    run = make_run(
        loss=lambda tokens: LossOutput(loss_N=tokens.logprobs_N * 0 + 1),
        train={"tokens_per_microbatch": 1, "prompts_per_step": 3},
    )
    for step in train(run).history:
        assert step["loss/total"] == pytest.approx(1.0)


class Recorder:
    """Remembers every lifecycle event."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    @hookimpl
    def grpo_run_start(self, event: Any) -> None:
        self.events.append(event)

    grpo_weights_synced = grpo_rollouts_scored = grpo_step_end = grpo_run_start
    grpo_evaluated = grpo_checkpoint_saved = grpo_run_end = grpo_run_start


class TextSaver:
    def save(self, request: Any) -> Path:
        path: Path = request.run_dir / "final.txt"
        path.write_text(str(request.policy.version))
        return path


def test_lifecycle_events_in_order(make_run: MakeRun, list_task: Any) -> None:
    recorder = Recorder()
    run = make_run(
        observers=[recorder],
        savers=[TextSaver()],
        task=list_task(["a?"], ["b?"]),
        evaluation=EvaluationSettings(every=1),
    )
    result = train(run)
    names = [type(event).__name__ for event in recorder.events]
    step = ["WeightsSynced", "RolloutsScored", "StepEnd"]
    evaluation = ["WeightsSynced", "Evaluated", "Evaluated"]
    assert names == [
        "RunStart",
        *evaluation,
        *step,
        *evaluation,
        *step,
        *evaluation,
        "CheckpointSaved",
        "RunEnd",
    ]
    derived = recorder.events[0].derived
    assert derived["rollouts_per_step"] == 4
    # Not only what was chosen: why.
    assert derived["layout"].startswith("prefix-tree, since it gives the hidden states")
    assert derived["precision"].startswith("float32, since")
    assert recorder.events[-1].status == "finished"
    assert recorder.events[-1].artifacts == {"final.txt": run.output / "final.txt"}
    assert [e["step"] for e in result.evaluations] == [0, 1, 2]


def test_the_run_folder_describes_the_run(make_run: MakeRun) -> None:
    run = make_run(manifest=[{"role": "loss", "name": "dapo"}])
    train(run)
    config = yaml.safe_load((run.output / "config.yaml").read_text())
    assert config["train"]["group_size"] == 2
    assert json.loads((run.output / "components.json").read_text())[0]["name"] == "dapo"


def test_every_promised_metric_is_there(make_run: MakeRun) -> None:
    from grpo_losses import Grpo, GrpoConfig
    from grpo_references import FrozenReference

    run = make_run(loss=Grpo(GrpoConfig(kl_coef=0.1)), reference=FrozenReference())
    metrics = train(run).history[-1]
    promised = {
        "reward/mean": None,
        "reward/std": None,
        "reward/says_yes/mean": 0.5,
        "reward/says_yes/std": 0.5,
        "reward/says_yes/failed": 0.0,
        "group/no_signal": 0.0,
        "advantage/mean": None,
        "advantage/std": None,
        "loss/total": None,
        "kl/reference": None,
        "entropy/mean": None,
        "ratio/mean": 1.0,
        "ratio/clip_low": 0.0,
        "ratio/clip_high": 0.0,
        "ratio/sampler_mismatch_kl": None,
        "length/mean": None,
        "length/min": None,
        "length/max": None,
        "length/finished_mean": None,
        "length/truncated_share": 0.0,
        "optim/grad_norm": None,
        "optim/learning_rate": 0.0005,
        "tokens/total": None,
        "time/sample": None,
        "time/score": None,
        "time/update": None,
        "time/sync": None,
        "time/tokens_per_second": None,
    }
    for name, value in promised.items():
        assert math.isfinite(metrics[name]), name
        if value is not None:
            assert metrics[name] == pytest.approx(value, abs=1e-6), name
    assert metrics["kl/reference"] > 0


def test_lora_trains_only_adapters(make_run: MakeRun) -> None:
    run = make_run(model={"lora": {"r": 2}}, optimizer={"learning_rate": 1e-2})
    before = {n: p.detach().clone() for n, p in run.policy.model.named_parameters()}
    train(run)
    moved = {n for n, p in run.policy.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved
    assert all(".lora_" in name for name in moved)


def test_gradient_checkpointing_gives_the_same_run(make_run: MakeRun, tmp_path: Path) -> None:
    plain = train(make_run(output=tmp_path / "a")).history
    checked = train(make_run(model={"gradient_checkpointing": True}, output=tmp_path / "b")).history
    # Some metrics are nothing but rounding, a few units in the last place of a log-prob.
    for a, b in zip(untimed(plain), untimed(checked), strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=2e-6)


def test_a_notebook_with_a_running_loop_can_train(make_run: MakeRun) -> None:
    import asyncio

    async def reward(completions: list[str], **_: Any) -> list[float]:
        await asyncio.sleep(0)
        return [float("yes" in c) for c in completions]

    async def cell() -> float:
        return train(make_run(rewards=[reward])).history[-1]["reward/mean"]

    assert asyncio.run(cell()) == 0.5


def test_rollouts_know_their_version(make_run: MakeRun) -> None:
    seen: list[Rollout] = []

    class Watch:
        @hookimpl
        def grpo_rollouts_scored(self, event: Any) -> None:
            seen.extend(event.rollouts_B)

    train(make_run(observers=[Watch()]))
    assert [r.policy_version for r in seen] == [0] * 4 + [1] * 4
