"""Our side of a step: the loop of ``grpo_core.train`` with a meter between its verbs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from grpo_core import ModelSettings, OptimizerSettings, Policy, Run, SamplingParams, TrainSettings
from grpo_core.trainer.prompts import PromptStream
from grpo_core.types import Prompt, Rollout, Span
from grpo_generator_hf import HFGenerator
from grpo_losses import Dapo, GroupAdvantage
from grpo_losses.config import DapoConfig
from step_bench.lengths import force_in_generator
from step_bench.meter import Meter

if TYPE_CHECKING:
    from grpo_core.batching import RolloutBatch
    from step_bench.material import Material
    from step_bench.workloads import Workload


class Rows:
    """A task whose prompts come in the order of the rows, whatever the stream's permutation."""

    def __init__(self, rows: Sequence[dict[str, Any]], seed: int) -> None:
        order = PromptStream(range(len(rows)), per_step=len(rows), seed=seed).indices(0)  # type: ignore[arg-type]
        self._prompts: list[Any] = [None] * len(rows)
        for row, place in zip(rows, order, strict=True):
            self._prompts[place] = prompt_of(row)

    def train_prompts(self) -> Sequence[Prompt]:
        return self._prompts

    def eval_prompts(self) -> Sequence[Prompt]:
        return ()


def prompt_of(row: dict[str, Any]) -> Prompt:
    """A row as a prompt; messages become the tuple that marks a conversation."""
    content = row["prompt"]
    return Prompt(
        id=row["id"],
        content=content if isinstance(content, str) else tuple(content),
        columns={"rewards_G": row["rewards_G"]},
    )


def reward(rewards_G: list[list[float]], **_: Any) -> list[float]:
    """The row's own rewards; whole groups come in order."""
    return [rewards[i % len(rewards)] for i, rewards in enumerate(rewards_G)]


class Ours:
    """A run whose steps are taken one at a time."""

    def __init__(self, workload: Workload, material: Material, seed: int) -> None:
        rows = [row for step in material.steps for row in step]
        force_in_generator(lambda step, key, i: material.steps[step][key]["lengths_G"][i])
        self._material = material
        self._meter = Meter(workload.device)
        self.run = Run(
            policy=Policy(ModelSettings(path=str(material.model)), OptimizerSettings()),
            task=Rows(rows, seed),
            generator=HFGenerator(),
            advantage=GroupAdvantage(),
            loss=Dapo(DapoConfig(clip_low=0.2, clip_high=0.2)),
            rewards=[reward],
            settings=TrainSettings(
                steps=len(material.steps),
                prompts_per_step=workload.prompts,
                group_size=workload.group_size,
                seed=seed,
                # Forced end tokens are not drawn from the policy.
                max_sampler_mismatch=None,
            ),
            sampling=SamplingParams(max_tokens=workload.completion_tokens[1]),
            output=material.folder / "ours",
        )
        policy = self.run.policy
        policy.logprobs = self._meter.timed("old_logprobs", policy.logprobs)  # type: ignore[method-assign]

    def steps(self) -> Iterator[dict[str, Any]]:
        """Figures of one step after the other; nothing is computed between them."""
        run, meter = self.run, self._meter
        with run.session():
            yield {"ready": True, "layout": run.policy.layout}
            meter.start()
            for step in run.steps():
                with meter.phase("sample"):
                    run.sync_weights(step)
                    rollouts = run.rollouts(step)
                with meter.phase("score"):
                    scored = run.score(step, rollouts)
                    batch = run.advantages(step, rollouts, scored)
                self._update(batch)
                run.finish_step(step)
                yield meter.stop() | {
                    "completion_tokens": sum(r.action_count for r in rollouts),
                    "prompt_tokens": sum(len(r.prompt_ids) for r in rollouts),
                }
                meter.start()

    def _update(self, batch: RolloutBatch, *, move: bool = True) -> None:
        run = self.run
        for minibatch in batch.minibatches():
            for micro in run.policy.microbatches(minibatch):
                tokens = run.policy.token_logprobs(micro)
                out = run.loss(tokens)
                run.policy.backward((out.loss_N * micro.weights_N).sum())
                run.observe(micro, tokens, out)
            if move:
                run.optimizer_step(minibatch)

    def compare(self, path: Path) -> dict[str, Any]:
        """Our gradient for TRL's rollouts of its first step against TRL's own.

        Returns:
            Relative difference in the Euclidean norm over all parameters, and the largest of any
            parameter.
        """
        theirs = torch.load(path, weights_only=True)
        rollouts = [
            _rollout(prompt_of(row), theirs, group, sample, len(row["lengths_G"]))
            for group, row in enumerate(self._material.steps[0])
            for sample in range(len(row["lengths_G"]))
        ]
        run = self.run
        self._update(run.advantages(0, rollouts, run.score(0, rollouts)), move=False)
        named = dict(run.policy.model.named_parameters())
        if set(named) != set(theirs["gradients"]):
            raise ValueError(f"other parameters: {sorted(set(named) ^ set(theirs['gradients']))}")
        off, size, worst = 0.0, 0.0, 0.0
        for name, parameter in named.items():
            expected = theirs["gradients"][name].double()
            assert parameter.grad is not None, f"{name} has no gradient"
            difference = float((parameter.grad.double().cpu() - expected).norm())
            norm = float(expected.norm())
            off, size = off + difference**2, size + norm**2
            worst = max(worst, difference / max(norm, 1e-12))
            parameter.grad = None
        return {
            "relative_difference": (off / size) ** 0.5,
            "worst_parameter": worst,
            "gradient_norm": size**0.5,
            "rollouts": len(rollouts),
        }


def _rollout(prompt: Prompt, theirs: dict[str, Any], group: int, sample: int, size: int) -> Rollout:
    ids = tuple(theirs["completion_ids"][group * size + sample])
    return Rollout(
        prompt=prompt,
        prompt_ids=tuple(theirs["prompt_ids"][group * size + sample]),
        group=group,
        sample=sample,
        spans=(Span(token_ids=ids, logprobs=(0.0,) * len(ids), policy_version=0),),
        text="",
        finish_reason="stop",
    )
