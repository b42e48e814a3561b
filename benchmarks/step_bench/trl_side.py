"""TRL's side of a step: its own ``GRPOTrainer``, stopped after every optimizer step."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from transformers import LogitsProcessorList, TrainerCallback
from trl import GRPOConfig, GRPOTrainer  # type: ignore[import-not-found, unused-ignore]

from step_bench.lengths import ForcedLengths
from step_bench.meter import Meter

if TYPE_CHECKING:
    from step_bench.material import Material
    from step_bench.workloads import Workload


def reward(completions: list[Any], rewards_G: list[list[float]], **_: Any) -> list[float]:
    """The row's own rewards; whole groups come in order."""
    return [rewards[i % len(rewards)] for i, rewards in enumerate(rewards_G)]


def tuned(workload: Workload, material: Material, seed: int) -> GRPOConfig:
    """TRL's defaults but for what makes it faster here, or equal to what it is compared with.

    On a CPU its defaults (bfloat16 and gradient checkpointing) were measured 2.8 times slower.
    """
    cpu = workload.device == "cpu"
    rows = workload.prompts * workload.group_size
    if rows % workload.trl_rows:
        raise ValueError(f"trl_rows {workload.trl_rows} does not divide {rows} rows")
    return GRPOConfig(
        output_dir=str(material.folder / "trl"),
        use_cpu=cpu,
        bf16=not cpu,
        gradient_checkpointing=False,
        per_device_train_batch_size=workload.trl_rows,
        gradient_accumulation_steps=rows // workload.trl_rows,
        num_generations=workload.group_size,
        max_completion_length=workload.completion_tokens[1],
        max_steps=len(material.steps),
        shuffle_dataset=False,
        seed=seed,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )


class Theirs:
    """A trainer that hands over after every optimizer step."""

    def __init__(self, workload: Workload, material: Material, seed: int) -> None:
        rows = [row for step in material.steps for row in step]
        self._material = material
        self._meter = Meter(workload.device)
        self._rollouts: dict[str, Any] = {}
        self._trainer = GRPOTrainer(
            model=str(material.model),
            reward_funcs=reward,
            args=tuned(workload, material, seed),
            train_dataset=Dataset.from_list(
                [{"prompt": row["prompt"], "rewards_G": row["rewards_G"]} for row in rows]
            ),
        )
        self._instrument()

    def train(self, hand_over: Callable[[dict[str, Any]], None]) -> None:
        """All steps; ``hand_over`` gets the figures of each and returns when the next is due."""
        self._trainer.add_callback(_HandOver(self, hand_over))
        self._trainer.train()

    def started(self) -> dict[str, Any]:
        return {"ready": True, "layout": "padded"}

    def begin(self) -> None:
        self._meter.start()

    def end(self) -> dict[str, Any]:
        return self._meter.stop() | {
            "completion_tokens": sum(map(len, self._rollouts["completion_ids"])),
            "prompt_tokens": sum(map(len, self._rollouts["prompt_ids"])),
        }

    def _instrument(self) -> None:
        trainer: Any = self._trainer
        meter = self._meter
        logprobs = trainer._get_per_token_logps_and_entropies

        def old_or_new(*args: Any, **kwargs: Any) -> Any:
            if not meter.inside("score"):
                return logprobs(*args, **kwargs)
            with meter.phase("old_logprobs"):
                return logprobs(*args, **kwargs)

        trainer._get_per_token_logps_and_entropies = old_or_new
        trainer._generate = meter.timed("sample", self._remembering(trainer._generate))
        trainer._calculate_rewards = meter.timed("score", trainer._calculate_rewards)
        trainer._generate_and_score_completions = meter.timed(
            "score", trainer._generate_and_score_completions
        )
        trainer.accelerator.clip_grad_norm_ = self._saving(trainer.accelerator.clip_grad_norm_)

    def _remembering(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        """Force the step's lengths, and keep what was sampled."""
        model: Any = self._trainer.model
        model_generate = model.generate

        def inner(prompts: Any) -> Any:
            step = self._material.steps[self._trainer.state.global_step]
            forced = ForcedLengths(
                [length for row in step for length in row["lengths_G"]],
                self._trainer.eos_token_ids,
                self._trainer.accelerator.device,
            )
            model.generate = partial(model_generate, logits_processor=LogitsProcessorList([forced]))
            try:
                done = generate(prompts)
            finally:
                del model.generate
            self._rollouts = {"prompt_ids": done[0], "completion_ids": done[1]}
            return done

        return inner

    def _saving(self, clip: Callable[..., Any]) -> Callable[..., Any]:
        """Write the first step's rollouts and gradients, before they are clipped."""

        def inner(*args: Any, **kwargs: Any) -> Any:
            if self._trainer.state.global_step == 0:
                gradients = {
                    name: parameter.grad.detach().cpu()
                    for name, parameter in self._trainer.model.named_parameters()
                }
                torch.save(self._rollouts | {"gradients": gradients}, first_step(self._material))
            return clip(*args, **kwargs)

        return inner


def first_step(material: Material) -> Any:
    """Where TRL's first step is written for ``Ours.compare``."""
    return material.folder / "first_step.pt"


class _HandOver(TrainerCallback):
    def __init__(self, theirs: Theirs, hand_over: Callable[[dict[str, Any]], None]) -> None:
        self._theirs = theirs
        self._hand_over = hand_over

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._hand_over(self._theirs.started())
        self._theirs.begin()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self._hand_over(self._theirs.end())
        self._theirs.begin()
