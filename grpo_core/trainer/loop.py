"""GRPO, top to bottom. Every noun is a role; none of them is a backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grpo_core.trainer.run import Run, RunResult


def train(run: Run) -> RunResult:
    """Train ``run.policy`` and return what came of it; see ``Run`` for the parts."""
    with run.session():
        for step in run.steps():
            run.sync_weights(step)
            rollouts = run.rollouts(step)
            scored = run.score(step, rollouts)
            batch = run.advantages(step, rollouts, scored)
            for minibatch in batch.minibatches():
                for micro in run.policy.microbatches(minibatch):
                    tokens = run.policy.token_logprobs(micro)
                    out = run.loss(tokens)
                    run.policy.backward((out.loss_N * micro.weights_N).sum())
                    run.observe(micro, tokens, out)
                run.optimizer_step(minibatch)
            run.finish_step(step)
    return run.result()
