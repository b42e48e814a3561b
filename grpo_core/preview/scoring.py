"""Every provider over the same rollouts, each by itself, twice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter

from grpo_core.builtin.text import prompt_text
from grpo_core.errors import ConfigError, RewardError
from grpo_core.preview.results import (
    Difference,
    Distribution,
    Example,
    Latency,
    Preview,
    ProviderResult,
    failures,
    said,
    without_signal,
)
from grpo_core.rewards import Reward
from grpo_core.scoring import Scorer
from grpo_core.types import Abstained, Failed, RewardOutcome, Rollout, Value

Calls = Sequence[Sequence[Rollout]]


def examine(
    rewards: Sequence[Reward],
    rollouts: Sequence[Rollout],
    *,
    groups_per_call: int = 1,
    twice: bool = True,
    examples: int = 3,
    unit: str = "tokens",
) -> Preview:
    """Score whole groups by every provider and put together what came out.

    A provider with ``score`` is asked group by group. A plain function is asked about
    ``groups_per_call`` groups at once, as in a step: it may compare completions of different
    prompts. What fails is counted and goes on; ``Preview.broken`` names what would stop a run.

    Args:
        rollouts: sorted by group.
        twice: score again, to see whether the same question gets the same answer.

    Raises:
        ConfigError: there are no rewards.
    """
    if not rewards:
        raise ConfigError(
            "there are no rewards to preview: the config names none, and the task's own are none"
        )
    # Raises when two go by one name, as it would in a run.
    names = Scorer(rewards).names
    group_B = [rollout.group for rollout in rollouts]
    answers = [_asked(reward, rollouts, groups_per_call, twice=twice) for reward in rewards]
    providers = tuple(
        _result(name, reward, answer, rollouts)
        for name, reward, answer in zip(names, rewards, answers, strict=True)
    )
    outcomes_F_B = [answer.first_B for answer in answers]
    total_B = [
        _total([(reward.weight, o) for reward, o in zip(rewards, column, strict=True)])
        for column in zip(*outcomes_F_B, strict=True)
    ]
    silent, groups = without_signal(group_B, total_B)
    return Preview(
        prompts=len(set(group_B)),
        rollouts=len(rollouts),
        unit=unit,
        lengths=Distribution.of([float(len(r.token_ids)) for r in rollouts]),
        truncated=sum(r.truncated for r in rollouts) / len(rollouts) if rollouts else 0.0,
        rollout_errors=sum(r.error is not None for r in rollouts),
        totals=Distribution.of([t for t in total_B if not math.isnan(t)]),
        groups_without_signal=silent,
        groups=groups,
        providers=providers,
        examples=_examples(rollouts, names, outcomes_F_B, total_B, examples),
    )


class _Answer:
    """What one provider said of all rollouts."""

    def __init__(self) -> None:
        self.first_B: list[RewardOutcome] = []
        self.second_B: list[RewardOutcome] | None = None
        self.seconds: list[float] = []
        self.traceback: str | None = None


def _asked(
    reward: Reward, rollouts: Sequence[Rollout], groups_per_call: int, *, twice: bool
) -> _Answer:
    answer = _Answer()
    # Neither `stop` nor a breaker: they would hide how many failures there are, and of which kinds.
    patient = reward.execution.model_copy(update={"failure_window": len(rollouts) + 1})
    scorer = Scorer([replace(reward, on_error="drop", execution=patient)])
    calls = _calls(rollouts, 1 if hasattr(reward.provider, "score") else groups_per_call)
    for call in calls:
        started = perf_counter()
        outcomes, problem = _call(scorer, call)
        answer.seconds.append(perf_counter() - started)
        answer.first_B += outcomes
        answer.traceback = answer.traceback or problem
    if twice:
        answer.second_B = [outcome for call in calls for outcome in _call(scorer, call)[0]]
    scorer.close()
    return answer


def _call(scorer: Scorer, rollouts: Sequence[Rollout]) -> tuple[list[RewardOutcome], str | None]:
    try:
        # `part`: that all of these failed is to be shown, and not to end the preview.
        outcomes_B = list(scorer.score(0, rollouts, part=True).outcomes_F_B[0])
    except RewardError as error:
        failed = Failed(kind="invalid", reason=str(error))
        return [failed if r.error is None else Abstained() for r in rollouts], None
    traces = (call.trace() for call in scorer.work[0].calls)
    return outcomes_B, next((trace for trace in traces if trace), None)


def _calls(rollouts: Sequence[Rollout], groups: int) -> Calls:
    members: dict[int, list[Rollout]] = {}
    for rollout in rollouts:
        members.setdefault(rollout.group, []).append(rollout)
    whole = list(members.values())
    return [
        [rollout for group in whole[start : start + groups] for rollout in group]
        for start in range(0, len(whole), groups)
    ]


def _result(
    name: str, reward: Reward, answer: _Answer, rollouts: Sequence[Rollout]
) -> ProviderResult:
    asked = [o for o, r in zip(answer.first_B, rollouts, strict=True) if r.error is None]
    first_failure = next((o.reason for o in asked if isinstance(o, Failed)), None)
    numbers = [o.value if isinstance(o, Value) else math.nan for o in answer.first_B]
    silent, groups = without_signal([r.group for r in rollouts], numbers)
    differences = [
        Difference(prompt=r.prompt.id, sample=r.sample, first=said(a), second=said(b))
        for r, a, b in zip(rollouts, answer.first_B, answer.second_B or (), strict=False)
        if not _same(a, b)
    ]
    return ProviderResult(
        name=name,
        weight=reward.weight,
        on_error=reward.on_error,
        values=Distribution.of([x for x in numbers if not math.isnan(x)]),
        abstained=sum(isinstance(o, Abstained) for o in asked),
        failed=failures(asked),
        first_failure=first_failure,
        traceback=answer.traceback,
        latency=Latency.of(answer.seconds),
        groups_without_signal=silent,
        groups=groups,
        differences=tuple(differences),
    )


def _same(a: RewardOutcome, b: RewardOutcome) -> bool:
    # Two failures may word their reasons differently: an address, a time.
    if isinstance(a, Failed) and isinstance(b, Failed):
        return a.kind == b.kind
    return type(a) is type(b) and (not isinstance(a, Value) or a == b)


def _total(weighted: Sequence[tuple[float, RewardOutcome]]) -> float:
    values = [weight * o.value for weight, o in weighted if isinstance(o, Value)]
    failed = any(isinstance(o, Failed) for _, o in weighted)
    return math.nan if failed or not values else math.fsum(values)


def _examples(
    rollouts: Sequence[Rollout],
    names: Sequence[str],
    outcomes_F_B: Sequence[Sequence[RewardOutcome]],
    total_B: Sequence[float],
    count: int,
) -> tuple[Example, ...]:
    """From the worst to the best by their total, so that a reward that is upside down is seen."""
    known = sorted(
        (i for i in range(len(rollouts)) if not math.isnan(total_B[i])), key=lambda i: total_B[i]
    ) or list(range(len(rollouts)))
    if count > 1:
        last = len(known) - 1
        known = [known[round(k * last / (count - 1))] for k in range(count)] if known else []
    return tuple(
        Example(
            prompt_id=rollouts[i].prompt.id,
            prompt=prompt_text(rollouts[i].prompt),
            completion=rollouts[i].text,
            tokens=len(rollouts[i].token_ids),
            truncated=rollouts[i].truncated,
            rewards={n: said(row[i]) for n, row in zip(names, outcomes_F_B, strict=True)},
        )
        for i in dict.fromkeys(known[:count])
    )
