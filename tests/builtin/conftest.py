"""A run as observers see it, without a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from grpo_core.hooks import Lifecycle
from grpo_core.types import (
    CheckpointSaved,
    Evaluated,
    Notice,
    Prompt,
    Rollout,
    RolloutsScored,
    RunEnd,
    RunStart,
    ScoredRollouts,
    Span,
    StepEnd,
    WeightsSynced,
)

HOSTILE = (
    "\x1b]0;pwned\x07\x1b[2J\x1b]52;c;aGk=\x07 \x9b31m \u202egnp.exe \x00 \r\b \ud83d "
    '[/bold] [red]x <script>alert(1)</script> <img src=x onerror=y> "><b> &amp; ${x} {{ x }} '
    ":smile: \U0001f469\u200d\U0001f467"
)
"""Steers a terminal, reads as rich's markup, as HTML and as templates, and is no valid Unicode."""


class Script:
    """The events of one run, delivered through the real lifecycle."""

    hostile = HOSTILE

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.steps = 6
        self.text = "<answer>{step}</answer>"
        self.notice = "all rewards were 0.0"
        self.names = ("exact-answer", "think-format")

    def rollout(self, index: int, step: int) -> Rollout:
        content = ({"role": "system", "content": "s"}, {"role": "user", "content": f"{index} +3=?"})
        return Rollout(
            prompt=Prompt(id=f"eval/{index}", content=content),
            prompt_ids=(1,),
            group=index,
            sample=0,
            spans=(Span(token_ids=(3, 2), logprobs=(-0.5, -0.1), policy_version=step),),
            text=self.text.replace("{step}", str(step)),
            finish_reason="stop",
        )

    def metrics(self, step: int) -> dict[str, float]:
        return {
            "reward/mean": step / 10,
            "reward/std": 0.4,
            "length/mean": 10.0 + step,
            "entropy/mean": 0.9 - step / 10,
            "optim/grad_norm": float("nan") if step == 2 else 0.5,
            "kl/reference": 0.001,
            "time/step": 1.5,
            "time/tokens_per_second": 1234.0,
            **{f"reward/{name}/mean": step / 10 for name in self.names},
        }

    def start(self, first_step: int = 0) -> RunStart:
        return RunStart(
            run_dir=self.run_dir,
            steps=self.steps,
            first_step=first_step,
            config={"train": {"steps": 6}, "rewards": [{"name": "a", "judge_api_key": "s3cret"}]},
            derived={"rollouts_per_step": 1280, "epochs": 0.25},
        )

    def evaluated(self, step: int) -> Iterator[Evaluated]:
        for label, more in (("sampled", 0.0), ("greedy", 0.05)):
            metrics = {f"eval/{label}/{n}": 0.2 + step / 10 + more for n in self.names}
            yield Evaluated(
                step=step,
                label=label,  # type: ignore[arg-type]
                metrics={**metrics, f"eval/{label}/length/mean": 12.0 + step},
                # Another order each time: whoever compares must go by the prompt.
                rollouts_B=[self.rollout(i, step) for i in sorted(range(12), reverse=step > 0)],
            )

    def step(self, step: int) -> StepEnd:
        notices = (Notice(code="no-signal", text=self.notice),) if step == 1 else ()
        return StepEnd(
            step=step,
            steps=self.steps,
            policy_version=step + 1,
            metrics=self.metrics(step),
            notices=notices,
        )

    def end(self, **changed: Any) -> RunEnd:
        known: dict[str, Any] = {
            "run_dir": self.run_dir,
            "status": "finished",
            "steps_done": self.steps,
            "artifacts": {"final": self.run_dir / "final"},
        }
        return RunEnd(**{**known, **changed})

    def play(self, observer: object, *, first: int = 0, last: int = 6, end: bool = True) -> None:
        """Steps ``first`` to ``last - 1``; evaluations before the first and after every third."""
        run = Lifecycle([("observer", observer)])
        run.run_start(self.start(first))
        run.weights_synced(WeightsSynced(step=first, policy_version=first, seconds=0.0))
        for event in self.evaluated(first) if first == 0 else ():
            run.evaluated(event)
        for step in range(first, last):
            run.weights_synced(WeightsSynced(step=step, policy_version=step, seconds=0.0))
            scored = ScoredRollouts(providers_F=(), weights_F=(), outcomes_F_B=())
            run.rollouts_scored(
                RolloutsScored(step=step, rollouts_B=(), scored=scored, advantages_B=())
            )
            run.step_end(self.step(step))
            for event in self.evaluated(step + 1) if (step + 1) % 3 == 0 else ():
                run.evaluated(event)
        path = self.run_dir / "checkpoints/step-6"
        run.checkpoint_saved(CheckpointSaved(step=last, path=path, kind="checkpoint"))
        if end:
            run.run_end(self.end(steps_done=last))


@pytest.fixture
def script(tmp_path: Path) -> Script:
    return Script(tmp_path)
