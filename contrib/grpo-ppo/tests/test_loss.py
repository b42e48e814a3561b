"""The two terms by the formulas of the papers, one token at a time."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from grpo_core.testing.tokens import random_tokens
from grpo_ppo import Ppo, PpoConfig


@pytest.mark.parametrize("value_clip", [0.2, None])
def test_term_by_term(value_clip: float | None) -> None:
    tokens = random_tokens(spread=0.4)
    found = Ppo(PpoConfig(clip=0.1, value_clip=value_clip, value_coef=0.3))(tokens).loss_N.tolist()
    names = ("logprobs", "old_logprobs", "advantages", "values", "old_values", "value_targets")
    columns = [getattr(tokens, f"{name}_N").tolist() for name in names]
    for loss, now, old, advantage, value, before, target in zip(found, *columns, strict=True):
        ratio = math.exp(now - old)
        policy = -min(ratio * advantage, min(max(ratio, 0.9), 1.1) * advantage)
        errors = [(value - target) ** 2]
        if value_clip is not None:
            errors.append((min(max(value, before - 0.2), before + 0.2) - target) ** 2)
        assert loss == pytest.approx(policy + 0.3 * max(errors) / 2, abs=1e-12)


def test_a_value_that_has_moved_far_enough_gets_no_gradient() -> None:
    tokens = random_tokens()
    assert tokens.old_values_N is not None
    values_N = (tokens.old_values_N + 1.0).requires_grad_()
    # Moved away from the target: still pulled back. Towards it, beyond the clip: not any more.
    for target, pulled in ((-5.0, True), (5.0, False)):
        moved = replace(tokens, values_N=values_N, value_targets_N=tokens.old_values_N + target)
        (gradient,) = torch.autograd.grad(Ppo()(moved).loss_N.sum(), values_N)
        assert bool(gradient.any()) is pulled
