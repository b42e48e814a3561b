"""Compositions in writing: what ``grpo plugins show`` prints. Nothing here imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grpo_losses.options import LossConfig

OBJECTIVES = {
    "clip": "-min(min(r, clip_max) A, clamp(r, 1 - clip_low, 1 + clip_high) A)",
    "cispo": "-sg(min(r, cap)) A logprobs",
    "sapo": "-(4 / t) sigmoid(t (r - 1)) A    t = temperature_pos if A > 0 else temperature_neg",
    "gmpo": "-exp(mean over the rollout of the log-ratio d, bounded by clip_high from above where "
    "A > 0 and by -clip_low from below elsewhere) A",
    "vespo": "-sg(w^k exp(lambda (1 - w))) A logprobs    w = exp(sum of d over the rollout)",
    "reinforce": "-A logprobs",
}
"""Per action token, to be minimised; A the advantage, r the ratio, sg() without gradient."""

RATIOS = {
    "token": "exp(d)",
    "sequence": "exp(mean of d over the rollout)",
    "sequence-token": "exp(d - sg(d) + sg(mean of d over the rollout))",
    "trajectory": "exp(sum of d over the rollout); each of its n tokens carries 1/n of the loss",
}
"""With ``d = logprobs - old_logprobs``."""

WEIGHTS = {
    "token-mean": "1 / tokens of the step",
    "sequence-mean": "1 / (rollouts of the step x tokens of the rollout)",
    "sequence-sum": "1 / rollouts of the step",
    "constant": "1 / (rollouts of the step x sampling.max_tokens)",
}
"""What each token's loss is multiplied by."""


def describe(config: type[LossConfig]) -> str:
    """Four or five lines: composition, objective, ratio, weight, advantage, paper."""
    ratio, aggregation = (str(config.model_fields[n].default) for n in ("ratio", "aggregation"))
    parts = [config.objective, f"{ratio} ratio", aggregation]
    if len(config.ratios) == 1:
        del parts[1]
    rows = [("composition", " x ".join(parts)), ("objective", OBJECTIVES[config.objective])]
    if len(config.ratios) > 1:
        rows.append(("ratio r", f"{RATIOS[ratio]}    d = logprobs - old_logprobs"))
    rows += [("weight", WEIGHTS[aggregation]), ("advantage", config.default_advantage)]
    if config.paper:
        rows.append(("paper", f"https://arxiv.org/abs/{config.paper}"))
    return "\n".join(f"{name:<12} {text}" for name, text in rows)
