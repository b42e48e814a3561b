"""Numbers of a preview against hand counts; what fails is counted and named."""

import itertools
import math

import pytest

from grpo_core.errors import ConfigError, RewardError
from grpo_core.preview.results import Distribution, percentile, without_signal
from grpo_core.preview.scoring import examine
from grpo_core.rewards import Reward
from grpo_core.types import Failed, Prompt, Rollout, ScoreRequest, Span, Value


def rollout(group: int, sample: int, text: str, error: str | None = None) -> Rollout:
    return Rollout(
        prompt=Prompt(id=f"p{group}", content="2+2=?", columns={"answer": "4"}),
        prompt_ids=(0,),
        group=group,
        sample=sample,
        spans=(Span(token_ids=tuple(range(len(text))), logprobs=None, policy_version=None),),
        text=text,
        finish_reason="error" if error else "length" if text == "cut" else "stop",
        error=error,
    )


TEXTS = (("4", "5", "cut"), ("4", "4", "4"), ("6", "x", "4"))
ROLLOUTS = [rollout(g, s, t) for g, texts in enumerate(TEXTS) for s, t in enumerate(texts)]


def correct(completions, answer, **_):
    return [float(c == a) for c, a in zip(completions, answer, strict=True)]


class Strange:
    """Fails on "x" by itself, abstains on "cut"."""

    name = "strange"

    def __init__(self) -> None:
        self.requests: list[int] = []

    def score(self, request: ScoreRequest):
        self.requests.append(len(request.rollouts_B))
        return [
            Failed(kind="timeout", reason="too slow")
            if r.text == "x"
            else None
            if r.text == "cut"
            else Value(value=2.0)
            for r in request.rollouts_B
        ]


def test_the_numbers_are_those_of_a_hand_count() -> None:
    found = examine([Reward(provider=correct, weight=0.5)], ROLLOUTS, groups_per_call=2)
    (only,) = found.providers
    assert only.values.mean == pytest.approx(5 / 9)
    assert only.values.std == pytest.approx(math.sqrt(5 / 9 * 4 / 9))
    assert [(bar.low, bar.count) for bar in only.values.bars] == [(0.0, 4), (1.0, 5)]
    assert (only.groups_without_signal, only.groups) == (1, 3)
    assert only.latency.calls == 2
    assert (found.totals.max, found.groups_without_signal, found.broken) == (0.5, 1, ())
    assert found.truncated == pytest.approx(1 / 9)
    assert found.lengths.max == 3
    assert [e.rewards["correct"] for e in found.examples] == ["0", "1", "1"]


def test_providers_are_asked_by_group_and_their_failures_counted() -> None:
    provider = Strange()
    found = examine(
        [Reward(provider=provider, on_error="drop"), Reward(provider=correct)], ROLLOUTS
    )
    strange = found.providers[0]
    assert provider.requests == [3] * 6
    assert (strange.values.count, strange.abstained, strange.failed) == (7, 1, {"timeout": 1})
    assert strange.first_failure == "too slow"
    assert not strange.broken, "with on_error drop a run goes on"
    # A rollout on which one reward failed has no total.
    assert found.totals.count == 8
    assert examine([Reward(provider=Strange())], ROLLOUTS).broken == ("strange",)


def test_what_raises_is_shown_with_its_traceback_and_the_others_go_on() -> None:
    def fragile(completions, **_):
        return [1.0 if c != "x" else {}["missing"] for c in completions]

    found = examine([Reward(provider=fragile), Reward(provider=correct)], ROLLOUTS)
    broken, fine = found.providers
    assert found.broken == ("fragile",)
    assert broken.failed == {"error": 3}, "the call with the x; the other calls have values"
    assert broken.values.count == 6
    assert "KeyError: 'missing'" in (broken.traceback or "")
    assert "in fragile" in (broken.traceback or "")
    assert fine.values.count == 9


@pytest.mark.parametrize("answer", [[1.0], "high", [math.nan] * 3, [{}] * 3])
def test_what_is_no_reward_is_invalid(answer: object) -> None:
    def lying(completions, **_):
        return answer

    (only,) = examine([Reward(provider=lying)], ROLLOUTS).providers
    assert only.failed == {"invalid": 9}
    assert only.broken


def test_chance_is_noticed_and_the_rows_are_named() -> None:
    counter = itertools.count()

    def drifting(completions, **_):
        return [float(next(counter)) if c == "x" else 0.0 for c in completions]

    (only,) = examine([Reward(provider=drifting)], ROLLOUTS).providers
    (row,) = only.differences
    assert (row.prompt, row.sample, row.first, row.second) == ("p2", 1, "0", "1")
    assert not examine([Reward(provider=drifting)], ROLLOUTS, twice=False).providers[0].differences
    assert not examine([Reward(provider=correct)], ROLLOUTS).providers[0].differences


def test_rollouts_that_failed_themselves_are_not_asked_about() -> None:
    rollouts = [*ROLLOUTS, rollout(2, 3, "4", error="the environment gave up")]
    found = examine([Reward(provider=correct)], rollouts)
    assert found.rollout_errors == 1
    assert found.providers[0].asked == 9


def test_an_async_reward_is_awaited() -> None:
    async def later(completions, **_):
        return [1.0] * len(completions)

    assert examine([Reward(provider=later)], ROLLOUTS).providers[0].values.mean == 1.0


def test_nothing_to_preview_and_two_of_a_name() -> None:
    with pytest.raises(ConfigError, match="no rewards to preview"):
        examine([], ROLLOUTS)
    with pytest.raises(RewardError, match="two rewards are called 'correct'"):
        examine([Reward(provider=correct)] * 2, ROLLOUTS)


def test_many_values_are_put_into_bins_that_hold_them_all() -> None:
    values = [0.1 * n for n in range(101)]
    bars = Distribution.of(values).bars
    assert len(bars) == 10
    assert sum(bar.count for bar in bars) == 101
    assert bars[0].low == 0.0
    assert bars[-1].high == pytest.approx(10.0)
    assert Distribution.of([]).mean is None


def test_percentiles_and_signal() -> None:
    assert percentile([5, 1, 2, 4, 3], 50) == 3
    assert percentile(list(range(1, 101)), 95) == 95
    assert percentile([7.0], 95) == 7.0
    assert without_signal([0, 0, 1, 1, 2, 2], [1, 1, 1, 2, math.nan, 1]) == (1, 2)
