"""The events of one run, delivered through the real lifecycle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from grpo_core.hooks import Lifecycle
from grpo_core.types import (
    Abstained,
    Evaluated,
    Failed,
    Notice,
    Prompt,
    Rollout,
    RolloutsScored,
    RunEnd,
    RunStart,
    ScoredRollouts,
    Span,
    StepEnd,
    Value,
)

SECRET = "hf_abcdefghijklmnopqrstuvwxyz"
STEPS = 4


def rollout(group: int, sample: int, text: str = "<answer>5</answer>") -> Rollout:
    return Rollout(
        prompt=Prompt(id=f"p/{group}", content=({"role": "user", "content": f"{group}+3=?"},)),
        prompt_ids=(1,),
        group=group,
        sample=sample,
        spans=(Span(token_ids=(3, 2), logprobs=(-0.5, -0.1), policy_version=0),),
        text=text,
        finish_reason="stop",
    )


ROLLOUTS = [rollout(g, s, f"half a pair \ud83d, <b>{g}.{s}</b>") for g in (1, 0) for s in (1, 0)]
SCORED = ScoredRollouts(
    providers_F=("exact-answer", "judge"),
    weights_F=(1.0, 0.5),
    outcomes_F_B=(
        tuple(Value(value=float(i)) for i in range(4)),
        (Value(value=0.5), Failed(kind="timeout", reason="no answer"), Abstained(), Abstained()),
    ),
)
ADVANTAGES = [0.5, -0.5, 1.5, -1.5]


class Story:
    """A run of four steps in ``run_dir``; the reward of step n is n / 10."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        run_dir.mkdir(parents=True, exist_ok=True)
        manifest = [
            {"role": "reward", "name": "judge", "version": "1", "config": {"hf_token": "x"}}
        ]
        (run_dir / "components.json").write_text(json.dumps(manifest))

    def start(self, first_step: int = 0) -> RunStart:
        return RunStart(
            run_dir=self.run_dir,
            steps=STEPS,
            first_step=first_step,
            config={
                "train": {"steps": STEPS, "max_tokens": 7},
                "rewards": [{"name": "judge", "api_key": "s3cret", "url": "http://me:pw@host/"}],
                "model": {"init_kwargs": {"note": f"uses {SECRET}"}},
            },
            derived={"rollouts_per_step": 4, "epochs": 0.25},
            notices=(Notice(code="slow", text="at the start"),),
        )

    def step(self, step: int) -> StepEnd:
        return StepEnd(
            step=step,
            steps=STEPS,
            policy_version=step + 1,
            metrics={"reward/mean": step / 10, "optim/grad_norm": float("nan")},
            notices=(Notice(code="no-signal", text="all equal \ud83d"),) if step == 1 else (),
        )

    def play(self, observer: object, *, first: int = 0, last: int = STEPS, **end: Any) -> None:
        """An evaluation before the first step, and one after the last."""
        run = Lifecycle([("observer", observer)])
        run.run_start(self.start(first))
        if not first:
            run.evaluated(self.evaluated(0))
        for step in range(first, last):
            run.rollouts_scored(
                RolloutsScored(
                    step=step, rollouts_B=ROLLOUTS, scored=SCORED, advantages_B=ADVANTAGES
                )
            )
            run.step_end(self.step(step))
        run.evaluated(self.evaluated(last))
        known: dict[str, Any] = {"status": "finished", "steps_done": last}
        run.run_end(RunEnd(run_dir=self.run_dir, **{**known, **end}))

    def evaluated(self, step: int) -> Evaluated:
        metrics = {"eval/gsm8k:greedy/exact-answer": 0.2 + step / 10}
        return Evaluated(
            step=step, label="gsm8k:greedy", metrics=metrics, rollouts_B=ROLLOUTS, scored=SCORED
        )


REWARDS = [(n + 1, n / 10) for n in range(STEPS)]
"""(steps done, ``reward/mean``) as every service must give it back."""
