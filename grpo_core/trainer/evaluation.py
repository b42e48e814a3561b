"""Held-out prompts, sampled and scored; nothing is trained on."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_core.errors import ConfigError
from grpo_core.estimators import majority, mean_interval, pass_at_k
from grpo_core.metrics import StepMetrics
from grpo_core.trainer.observe import observe_environment, observe_lengths, observe_logged
from grpo_core.trainer.sampling import collect, request_of, together
from grpo_core.types import EvalResult, Evaluated, Prompt, Rollout, ScoredRollouts
from grpo_core.types.evaluation import label_of

if TYPE_CHECKING:
    from grpo_core.protocols import Task
    from grpo_core.settings import SamplingParams
    from grpo_core.trainer.run import Run


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """All samples of one prompt, as one reward sees them."""

    values: tuple[float, ...]
    """Those that there are; a failed or abstaining reward gives none."""
    given: tuple[Hashable | None, ...]
    """The answer in each of them, where the reward can say so."""


def evaluate(run: Run, steps_done: int, *, saved: bool = False) -> list[Evaluated]:
    """Every held-out data set of the task, sampled in every way that the settings name.

    The generator gets the current weights first. Returns one event per data set and way, with
    numbers over all ranks; see ``EvalResult`` for what they are.

    Args:
        saved: the run's policy was read back from its folder, which the numbers shall say.
    """
    settings = run.evaluation
    if settings is None:
        return []
    run.sync_weights(steps_done)
    events, first = [], 0
    for dataset, prompts in held_out(run).items():
        chosen = prompts[: settings.prompts]
        for name, way in settings.sampling.items():
            found = Part(run, steps_done, way.samples, dataset=dataset, sampling=name, saved=saved)
            events.append(found.evaluated(chosen, first, way.over(run.sampling)))
        # Prompts of different sets do not share random numbers.
        first += len(chosen)
    return events


def evaluate_saved(run: Run, path: Path, steps_done: int) -> list[Evaluated]:
    """The same with the model as others will load it; the generator has it from then on.

    A model that was saved wrongly (a head left out, an adapter without its base) would otherwise
    be found by whoever uses it.
    """
    read_back = copy(run)
    own = {"path": str(path), "revision": None, "lora": None}
    settings = run.policy.settings.model_copy(update=own)
    read_back.policy = type(run.policy)(settings, seed=run.settings.seed)
    return evaluate(read_back, steps_done, saved=True)


def held_out(run: Run) -> Mapping[str, Sequence[Prompt]]:
    """The task's held-out prompts by the name of their set; ``""`` where there is only one."""
    sets = getattr(run.task, "eval_sets", None)
    return sets() if sets is not None else {"": run.task.eval_prompts()}


class Part:
    """One data set, sampled in one way."""

    def __init__(self, run: Run, steps_done: int, samples: int, **about: Any) -> None:
        self._run = run
        self._steps_done = steps_done
        self._samples = samples
        self._about = about

    def evaluated(self, prompts: Sequence[Prompt], first: int, way: SamplingParams) -> Evaluated:
        """Sample and score this rank's share; numbers over all ranks.

        Args:
            first: the number of the first prompt among all that are evaluated.
        """
        run = self._run
        mine = range(run.policy.rank, len(prompts), run.policy.ranks)
        with together(run):
            request = request_of(
                run,
                [prompts[i] for i in mine],
                keys=[first + i for i in mine],
                # Evaluations draw other random numbers than any step of training.
                step=-1 - self._steps_done,
                sampling=way,
                group_size=self._samples,
            )
            rollouts = collect(run, request, partial(run.scorer.submit, self._steps_done))
        scored = run.scorer.score(self._steps_done, rollouts)
        results = list(self._results(rollouts, scored))
        label = label_of(**self._about)
        metrics = StepMetrics()
        observe_lengths(metrics, rollouts, f"eval/{label}/length")
        observe_environment(metrics, rollouts, f"eval/{label}/")
        observe_logged(metrics, run.scorer.work, f"eval/{label}")
        return Evaluated(
            step=self._steps_done,
            label=label,
            metrics={r.metric: r.value for r in results} | metrics.reduced(run.policy.gather),
            rollouts_B=rollouts,
            scored=scored,
            results=results,
        )

    def _results(self, rollouts: Sequence[Rollout], scored: ScoredRollouts) -> Iterator[EvalResult]:
        run = self._run
        assert run.evaluation is not None
        for position, reward in enumerate(scored.providers_F):
            answer = getattr(run.rewards[position].provider, "answer", None)
            mine = self._by_prompt(rollouts, scored.given_F_B()[position], answer)
            # In the order of the prompts, so that sums round the same on any number of ranks.
            everyone = sorted(run.policy.gather(mine), key=lambda numbered: numbered[0])
            for found in measures([a for _, a in everyone], self._samples, run.evaluation.pass_at):
                yield EvalResult(reward=reward, samples=self._samples, **self._about, **found)

    def _by_prompt(
        self,
        rollouts: Sequence[Rollout],
        values: Sequence[float],
        answer: Callable[[Rollout], Hashable | None] | None,
    ) -> list[tuple[int, Answers]]:
        found = []
        for start in range(0, len(rollouts), self._samples):
            rows = [
                row for row in range(start, start + self._samples) if values[row] == values[row]
            ]
            given = tuple(answer(rollouts[row]) if answer else None for row in rows)
            own = Answers(values=tuple(values[row] for row in rows), given=given)
            found.append((rollouts[start].group, own))
        return found


def measures(prompts: Sequence[Answers], samples: int, pass_at: float) -> Iterator[dict[str, Any]]:
    """The numbers about one reward: ``mean@n``, and for several samples ``pass@k`` with ``k`` =
    1, 2, 4 … n and, of rewards that say which answer was given, ``majority@n``.

    A prompt without values counts nowhere, one with fewer than ``k`` not for ``pass@k``.
    """
    scored = [p for p in prompts if p.values]
    if not scored:
        return
    yield _found(f"mean@{samples}", [sum(p.values) / len(p.values) for p in scored])
    for k in _powers_of_two(samples):
        shares = [
            pass_at_k(len(p.values), sum(v >= pass_at for v in p.values), k)
            for p in scored
            if len(p.values) >= k
        ]
        if shares:
            yield _found(f"pass@{k}", shares)
    if samples > 1 and any(answer is not None for p in scored for answer in p.given):
        yield _found(f"majority@{samples}", [float(_majority_passes(p, pass_at)) for p in scored])


def _majority_passes(prompt: Answers, pass_at: float) -> bool:
    chosen = majority(prompt.given)
    return chosen is not None and prompt.values[chosen] >= pass_at


def _powers_of_two(most: int) -> list[int]:
    if most == 1:
        return []
    powers = [1 << i for i in range(most.bit_length()) if 1 << i < most]
    return [*powers, most]


def _found(measure: str, values: Sequence[float]) -> dict[str, Any]:
    mean, interval = mean_interval(values)
    low, high = interval or (None, None)
    return {"measure": measure, "value": mean, "low": low, "high": high, "prompts": len(values)}


def evaluate_model(run: Run) -> list[Evaluated]:
    """Evaluate a run's policy as it is, without training, folder or observers; what
    ``grpo eval`` does.

    Without held-out prompts all prompts of the task are taken.

    Raises:
        ConfigError: the run has no ``evaluation`` settings.
    """
    if run.evaluation is None:
        raise ConfigError("evaluation is null: there is nothing to evaluate; give it settings")
    if not any(map(len, held_out(run).values())):
        run = copy(run)
        run.task = AsHeldOut(run.task)
    try:
        return evaluate(run, 0)
    finally:
        run.generator.close()
        run.scorer.close()


class AsHeldOut:
    """A task all of whose prompts are for evaluation."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def train_prompts(self) -> Sequence[Prompt]:
        return self._task.train_prompts()

    eval_prompts = train_prompts
