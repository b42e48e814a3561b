"""GRPO, top to bottom. Every noun is a role; none of them is a backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grpo_core.trainer.result import RunResult
    from grpo_core.trainer.run import Run


def train(run: Run, *, resume: str | None = None, accept_changes: bool = False) -> RunResult:
    """Train ``run.policy`` and return what came of it; see ``Run`` for the parts.

    Args:
        resume: go on in the run's folder from its ``"newest"`` whole checkpoint, or from one by
            name (``"step-000040"``); without any checkpoint the run starts at its beginning.
        accept_changes: also where settings, data or plugins are not those of the checkpoint.
    """
    with run.session(resume, accept_changes=accept_changes):
        for step in run.steps():
            run.sync_weights(step)
            rollouts = run.rollouts(step)
            scored = run.score(step, rollouts)
            rollouts, scored = run.resample(step, rollouts, scored)
            batch = run.advantages(step, rollouts, scored)
            for minibatch in batch.minibatches():
                for micro in run.policy.microbatches(minibatch):
                    tokens = run.policy.token_logprobs(micro)
                    out = run.loss(tokens)
                    run.policy.backward(micro.weighted(out))
                    run.observe(micro, tokens, out)
                run.optimizer_step(minibatch)
            run.finish_step(step)
    return run.result()
