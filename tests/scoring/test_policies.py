"""What a failure does to a run: stop, drop, drop the group, and the circuit breaker."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from grpo_core.errors import RewardError
from grpo_core.rewards import Reward
from grpo_core.scoring import Scorer
from grpo_core.scoring.verdict import Breaker
from grpo_core.settings import RewardExecution
from grpo_core.types import Failed, ScoredRollouts, Value

Make = Callable[..., Scorer]


class Picky:
    """Typed: fails on single rollouts."""

    name = "picky"

    def score(self, request: Any) -> list[Any]:
        failed = Failed(kind="error", reason="raised ValueError: bad")
        return [failed if "bad" in r.text else Value(value=1.0) for r in request.rollouts_B]


def length(completions: list[str]) -> list[float]:
    return [float(len(c)) for c in completions]


def shape(scored: ScoredRollouts) -> list[list[float | None]]:
    return [[None if math.isnan(v) else v for v in row] for row in scored.values_F_B()]


def two(on_error: Any, weight: float = 1.0) -> list[Reward]:
    return [
        Reward(provider=Picky(), on_error=on_error, weight=weight),
        Reward(provider=length, weight=0.5),
    ]


def test_a_dropped_rollout_has_no_value_of_any_reward(group: Any, make_scorer: Make) -> None:
    """The other rewards' values alone would make it look worse than it is: a failure as a 0."""
    rows = [*group("a", "bad", number=0), *group("c", "dd", number=1)]
    scored = make_scorer(*two("drop")).score(0, rows)
    assert shape(scored) == [[1, None, 1, 1], [1, None, 1, 2]]
    assert scored.dropped_B == (False, True, False, False)
    assert scored.outcomes_F_B[1][1] == Value(value=3.0), "it stays visible"
    assert scored.given_F_B()[1] == [1, 3, 1, 2]


def test_drop_group_leaves_out_the_whole_group(group: Any, make_scorer: Make) -> None:
    rows = [*group("a", "bad", number=0), *group("c", "dd", number=1)]
    scored = make_scorer(*two("drop-group")).score(0, rows)
    assert shape(scored) == [[None, None, 1, 1], [None, None, 1, 2]]
    assert scored.dropped_B == (True, True, False, False)


def test_what_only_watches_drops_nothing(group: Any, make_scorer: Make) -> None:
    scored = make_scorer(*two("drop-group", weight=0.0)).score(0, group("a", "bad"))
    assert scored.dropped_B == (False, False)
    assert shape(scored) == [[1, None], [1, 3]]


def test_stop_stops(group: Any, make_scorer: Make) -> None:
    with pytest.raises(RewardError, match="reward 'picky' raised ValueError: bad; first seen at"):
        make_scorer(*two("stop")).score(0, group("a", "bad"))


def test_a_breaker_needs_a_full_window_and_forgets_what_is_old() -> None:
    breaker = Breaker(window=4, bound=0.5)
    assert [breaker.opens(x) for x in (1, 1, 1)] == [False] * 3
    assert breaker.opens(0)
    assert not breaker.opens(0), "2 of 4 is not more than half"
    assert not breaker.opens(0)
    assert breaker.rate == 0.25


def test_too_many_failures_of_late_stop_a_run_that_drops(group: Any, make_scorer: Make) -> None:
    scorer = make_scorer(Picky(), on_error="drop", max_failure_rate=0.25, failure_window=4)
    healthy = [*group("a", number=0), *group("b", number=1)]
    sick = [*group("a", number=0), *group("bad", number=1)]
    scorer.score(0, healthy)
    scorer.score(1, sick)
    with pytest.raises(RewardError, match="failed on 50% of its last 4 calls, more than") as caught:
        scorer.score(2, sick)
    assert "prompt 'p/1', completion 'bad'" in str(caught.value)


def test_half_of_a_batch_is_half_a_failed_call(group: Any, make_scorer: Make) -> None:
    how = {"on_error": "drop", "failure_window": 1, "overlap": False}
    rows = [*group("a", number=0), *group("bad", number=1)]
    make_scorer(Picky(), **how, max_failure_rate=0.5).score(0, rows)
    with pytest.raises(RewardError, match="failed on 50% of its last 1 calls"):
        make_scorer(Picky(), **how, max_failure_rate=0.4).score(0, rows)


def test_all_ranks_stop_for_the_same_reason_in_order_of_groups(
    group: Any, make_scorer: Make
) -> None:
    """A rank that stopped alone would leave the others waiting for it."""
    heard: list[Any] = []

    def other_rank_has_failed(mine: list[Any]) -> list[Any]:
        heard.append(mine)
        return [theirs, *mine] if theirs else mine

    theirs: Any = None
    first = make_scorer(Picky(), gather=other_rank_has_failed)
    with pytest.raises(RewardError):
        first.score(0, group("bad", number=3))
    [[theirs]] = heard
    healthy = make_scorer(Picky(), gather=other_rank_has_failed)
    with pytest.raises(RewardError, match="prompt 'p/3', completion 'bad'"):
        healthy.score(0, group("a", number=0))
    # Down means down everywhere: a success elsewhere is enough to go on.
    drops = make_scorer(Picky(), gather=other_rank_has_failed, on_error="drop")
    drops.score(0, group("a", number=0))
    with pytest.raises(RewardError, match="so it did on all 2 rollouts of the step"):
        drops.score(1, group("bad", number=0))
    empty = make_scorer(Picky(), gather=other_rank_has_failed)
    with pytest.raises(RewardError, match="prompt 'p/3'"):
        empty.score(0, [])


def test_the_settings_are_found_in_a_config() -> None:
    from grpo_core.config import load_config
    from grpo_core.plugins import Registry

    block = {
        "name": "exact-answer",
        "on_error": "drop-group",
        "execution": {"timeout": 5, "retries": 2, "isolation": "process", "memory_mb": 512},
    }
    config = {
        "model": {"path": "x"}, "task": "arithmetic", "train": {"steps": 1}, "rewards": [block],
    }  # fmt: skip
    resolved = load_config([config], [], Registry.installed())
    [component] = resolved.rewards
    assert component.on_error == "drop-group"
    assert component.execution == RewardExecution(
        timeout=5, retries=2, isolation="process", memory_mb=512
    )
    again = load_config([resolved.plain()], [], Registry.installed())
    assert again.rewards[0].execution == component.execution


@pytest.mark.parametrize("isolation", ["none", "process"])
def test_where_it_was_raised_holds_its_own_lines_alone(
    isolation: str, nasty: Any, group: Any, make_scorer: Make
) -> None:
    """None for a verdict of ours on what it returned, and none of ours for what it raised."""
    scorer = make_scorer(nasty.obeys, isolation=isolation)
    with pytest.raises(RewardError, match=r"returned '0\.5'") as verdict:
        scorer.score(0, group("string"))
    assert not hasattr(verdict.value, "__notes__")
    with pytest.raises(RewardError, match="raised SystemExit: 3") as raised:
        scorer.score(1, group("sys.exit"))
    [note] = raised.value.__notes__
    assert "nasty_rewards.py" in note
    assert "direct cause" not in note
    assert "grpo_core" not in note
