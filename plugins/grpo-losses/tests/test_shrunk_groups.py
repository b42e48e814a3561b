"""Groups that lost rollouts because a reward failed, against arithmetic by hand.

Groups of four, of which three, one and none are left, and a whole one beside them.
"""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import torch

from grpo_core.plugins import Registry
from grpo_core.types import AdvantageRequest, Failed, ScoredRollouts, Value
from grpo_losses import (
    BatchAdvantage,
    GdpoAdvantage,
    GroupAdvantage,
    ReinforcePlusPlusAdvantage,
    ReinforcePlusPlusBaselineAdvantage,
    RlooAdvantage,
    UnscaledAdvantage,
)

DROPPED = None
MAIN = (1.0, 0.0, DROPPED, 0.5, 2.0, DROPPED, DROPPED, DROPPED, *[DROPPED] * 4, 0.3, 0.7, 0.2, 0.4)
STYLE = (0.0, 3.0, 9.0, 1.0, 5.0, 9.0, 9.0, 9.0, *[9.0] * 4, 1.0, 1.0, 4.0, 1.0)
"""What another reward of weight 0.5 said, of the dropped ones too."""
LENGTHS = (3, 1, 2, 5, 4, 4, 1, 2, 3, 2, 2, 6, 1, 2, 3, 4)
TOTALS = [None if m is None else m + 0.5 * s for m, s in zip(MAIN, STYLE, strict=True)]
LEFT = [i for i, total in enumerate(TOTALS) if total is not None]
EPSILON = 1e-4


def request() -> AdvantageRequest:
    failed = Failed(kind="timeout", reason="10 s")
    scored = ScoredRollouts(
        providers_F=("main", "style"),
        weights_F=(1.0, 0.5),
        outcomes_F_B=(
            tuple(failed if m is None else Value(value=m) for m in MAIN),
            tuple(Value(value=s) for s in STYLE),
        ),
        dropped_B=tuple(m is None for m in MAIN),
    )
    return AdvantageRequest(
        rewards_F_B=torch.tensor(scored.values_F_B(), dtype=torch.float64),
        weights_F=torch.tensor(scored.weights_F, dtype=torch.float64),
        group_B=torch.arange(len(MAIN)) // 4,
        action_count_B=torch.tensor(LENGTHS),
    )


def of_group(values: Any, i: int) -> list[float]:
    """What is left of the group of rollout ``i``."""
    return [values[k] for k in LEFT if k // 4 == i // 4]


def centred(values: Any) -> dict[int, float]:
    return {i: values[i] - statistics.fmean(of_group(values, i)) for i in LEFT}


def alone(i: int) -> bool:
    return len(of_group(TOTALS, i)) == 1


def by_group(values: Any) -> dict[int, float]:
    return {
        i: 0.0 if alone(i) else x / (statistics.stdev(of_group(values, i)) + EPSILON)
        for i, x in centred(values).items()
    }


def by_batch() -> dict[int, float]:
    scale = statistics.stdev([TOTALS[i] for i in LEFT]) + EPSILON  # type: ignore[misc]
    return {i: x / scale for i, x in centred(TOTALS).items()}


def leave_one_out() -> dict[int, float]:
    found = {}
    for i in LEFT:
        others = [TOTALS[k] for k in LEFT if k // 4 == i // 4 and k != i]
        found[i] = TOTALS[i] - statistics.fmean(others) if others else 0.0  # type: ignore
    return found


def per_objective() -> dict[int, float]:
    main, style = by_group(MAIN), by_group(STYLE)
    totals = {i: main[i] + 0.5 * style[i] for i in LEFT}
    scale = statistics.stdev(totals.values()) + EPSILON
    return {i: total / scale for i, total in totals.items()}


def by_token(values: dict[int, float]) -> dict[int, float]:
    tokens = [value for i, value in values.items() for _ in range(LENGTHS[i])]
    mean, scale = statistics.fmean(tokens), statistics.stdev(tokens) + EPSILON
    return {i: (value - mean) / scale for i, value in values.items()}


CASES: dict[str, tuple[Any, Any]] = {
    "group": (GroupAdvantage, lambda: by_group(TOTALS)),
    "batch": (BatchAdvantage, by_batch),
    "none": (UnscaledAdvantage, lambda: centred(TOTALS)),
    "rloo": (RlooAdvantage, leave_one_out),
    "gdpo": (GdpoAdvantage, per_objective),
    "reinforce-pp": (ReinforcePlusPlusAdvantage, lambda: by_token({i: TOTALS[i] for i in LEFT})),
    "reinforce-pp-baseline": (
        ReinforcePlusPlusBaselineAdvantage,
        lambda: by_token(centred(TOTALS)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_left_is_compared_with_what_is_left(name: str) -> None:
    advantage, expected = CASES[name]
    result = advantage()(request())
    if result.token_advantages is not None:
        found = []
        for tokens, length in zip(result.token_advantages, LENGTHS, strict=True):
            assert len(tokens) == length
            assert tokens.unique().numel() == 1
            found.append(float(tokens[0]))
    else:
        found = result.advantages_B.tolist()
    by_hand = expected()
    for i, value in enumerate(found):
        assert value == pytest.approx(by_hand.get(i, 0.0), abs=1e-12), i
    if name not in ("reinforce-pp", "reinforce-pp-baseline"):
        assert found[4] == 0.0, "one that is alone has nothing to be compared with"


def test_no_advantage_is_left_out() -> None:
    registry = Registry.installed()
    offered = [registry.get("advantage", name) for name in registry.names("advantage")]
    assert {r.name for r in offered if r.source.distribution == "grpo-losses"} == set(CASES)
