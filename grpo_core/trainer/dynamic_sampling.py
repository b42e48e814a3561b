"""Groups whose completions all have one reward teach nothing, and give way to others.

Dynamic sampling is DAPO's (arXiv 2503.14476). A step has ``prompts_per_step`` places. A place whose
group has no signal is sampled again, with another prompt, in the next round. The group of round
``r`` at place ``p`` has the number ``r * prompts_per_step + p``, so that numbers alone tell what is
trained on: the last group of each place. Everything else stays visible, and counts as sampled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from grpo_core.types import Rollout, ScoredRollouts

if TYPE_CHECKING:
    from grpo_core.trainer.run import Run


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredGroup:
    """One group of this rank, with its outcomes."""

    rollouts: tuple[Rollout, ...]
    scored: ScoredRollouts
    totals: tuple[float, ...]
    """Each member's weighted sum of values; members without any value are left out."""

    @property
    def number(self) -> int:
        return self.rollouts[0].group

    @property
    def has_signal(self) -> bool:
        return len(set(self.totals)) > 1

    @property
    def variance(self) -> float:
        """Of the totals."""
        mean = sum(self.totals) / len(self.totals)
        return sum((x - mean) ** 2 for x in self.totals) / len(self.totals)


def resample(
    run: Run, step: int, rollouts: Sequence[Rollout], scored: ScoredRollouts
) -> tuple[list[Rollout], ScoredRollouts]:
    """Sample and score further rounds until every place has signal or the bound is reached.

    Every rank fills its own places, and all of them take part in as many rounds as the slowest
    needs. Which prompt comes next at a place depends neither on the other places nor on the number
    of ranks.

    Returns:
        What was given, followed by what replaces some of it.
    """
    settings = run.settings.dynamic_sampling
    if settings is None:
        return list(rollouts), scored
    places = run.settings.prompts_per_step
    groups = list(groups_of(rollouts, scored))
    empty = [group for group in groups if not group.has_signal]
    rounds = 1
    while rounds < settings.max_rounds and any(run.policy.gather([bool(empty)])):
        more = run.sample_round(step, rounds, [group.number % places for group in empty])
        _count_replaced(run, empty)
        new = list(groups_of(more, run.score(step, more, part=True)))
        groups += new
        empty = [group for group in new if not group.has_signal]
        rounds += 1
    left = len(empty)
    if run.replay is not None:
        replayed = _replayed(run, step, empty, first=settings.max_rounds * places)
        _count_replaced(run, empty[: len(replayed)])
        run.replay.add(group for group in groups if group.has_signal)
        run.metrics.sum("sampling/groups_replayed", float(len(replayed)))
        groups += replayed
        left -= len(replayed)
    share = places // run.policy.ranks
    run.metrics.maximum("sampling/rounds", float(rounds))
    run.metrics.sum("sampling/groups_replaced", float(len(groups) - share))
    run.metrics.ratio("sampling/unfilled", left, share)
    return [r for group in groups for r in group.rollouts], joined([g.scored for g in groups])


def trained_rows(rollouts: Sequence[Rollout], places: int) -> list[int]:
    """The rows of each place's last group, places in order."""
    last: dict[int, int] = {}
    for rollout in rollouts:
        place = rollout.group % places
        last[place] = max(rollout.group, last.get(place, 0))
    rows = [i for i, r in enumerate(rollouts) if last[r.group % places] == r.group]
    return sorted(rows, key=lambda i: (rollouts[i].group % places, rollouts[i].sample))


def groups_of(rollouts: Sequence[Rollout], scored: ScoredRollouts) -> Iterator[ScoredGroup]:
    """Whole groups, in the order in which they begin."""
    rows_of: dict[int, list[int]] = {}
    for row, rollout in enumerate(rollouts):
        rows_of.setdefault(rollout.group, []).append(row)
    values_B = list(zip(*scored.values_F_B(), strict=True))
    for rows in rows_of.values():
        totals = [_total(values_B[row], scored.weights_F) for row in rows]
        yield ScoredGroup(
            rollouts=tuple(rollouts[row] for row in rows),
            scored=chosen(scored, rows),
            totals=tuple(total for total in totals if total is not None),
        )


def chosen(scored: ScoredRollouts, rows: Sequence[int]) -> ScoredRollouts:
    """The outcomes of some rollouts."""
    return replace(
        scored,
        outcomes_F_B=tuple(tuple(column[row] for row in rows) for column in scored.outcomes_F_B),
        dropped_B=tuple(scored.dropped_B[row] for row in rows),
        logged_B=tuple(scored.logged_B[row] for row in rows),
    )


def joined(parts: Sequence[ScoredRollouts]) -> ScoredRollouts:
    """The outcomes of one part after the other."""
    columns = zip(*(part.outcomes_F_B for part in parts), strict=True)
    return replace(
        parts[0],
        outcomes_F_B=tuple(tuple(o for part in column for o in part) for column in columns),
        dropped_B=tuple(dropped for part in parts for dropped in part.dropped_B),
        logged_B=tuple(logged for part in parts for logged in part.logged_B),
    )


def _replayed(
    run: Run, step: int, empty: Sequence[ScoredGroup], *, first: int
) -> list[ScoredGroup]:
    """Groups of earlier steps for as many places as there are, as if of one more round."""
    assert run.replay is not None
    seed = (run.settings.seed, step, run.policy.rank)
    drawn = run.replay.draw(len(empty), seed=seed)
    numbers = [first + group.number % run.settings.prompts_per_step for group in empty]
    return [
        replace(group, rollouts=tuple(replace(r, group=number) for r in group.rollouts))
        for number, group in zip(numbers, drawn, strict=False)
    ]


def _total(values: Sequence[float], weights: Sequence[float]) -> float | None:
    """The weighted sum of what is there; ``None`` where nothing is."""
    present = [v * w for v, w in zip(values, weights, strict=True) if v == v]
    return sum(present) if present else None


def _count_replaced(run: Run, groups: Sequence[ScoredGroup]) -> None:
    """Keep what is not trained on in the means of what was sampled: without it `reward/mean`
    would show the groups that were chosen, near the middle however good the policy is."""
    run.metrics.mean("reward/mean", [total for group in groups for total in group.totals])
    run.metrics.mean("group/no_signal", [1.0] * len(groups))
