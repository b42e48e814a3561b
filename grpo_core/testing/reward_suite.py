"""What the core relies on in every reward, as tests to inherit."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from grpo_core.rewards import Reward, as_provider, stateful
from grpo_core.scoring import Scorer
from grpo_core.settings import RewardExecution
from grpo_core.types import Failed, Prompt, RewardOutcome, Rollout, Span, Value

ODD = (
    "",
    " \n\t",
    "\x00\x1b[31m",
    "\N{SNOWMAN} \N{GRINNING FACE} \u202e\u0301",
    "half an emoji: \ud83d",
    "<answer><answer></think>",
    "\\boxed{" * 50,
    "$" * 51,
)
"""Completions that policies do write: nothing, control characters, broken Unicode, open tags."""


class RewardSuite:
    """Inherit in a test module, say how the reward is made and what it is asked about, and pytest
    runs every check::

        class TestCloseness(RewardSuite):
            columns = {"answer": "5"}
            completions = ("it is 5", "it is 7", "no idea")

            def make(self):
                return Closeness(ClosenessConfig(scale=4))
    """

    columns: ClassVar[Mapping[str, Any]] = {}
    """The prompt's row in the data, which the reward may ask for."""
    completions: ClassVar[Sequence[str]]
    """Of one prompt; two or more that the reward should tell apart."""
    conversational: ClassVar[bool] = False
    """Whether prompt and completions are messages, for rewards that take nothing else."""
    deterministic: ClassVar[bool] = True
    """The same rollouts are scored the same again; false for a judge that samples."""
    isolates: ClassVar[bool] = True
    """It can be sent to a worker process (``execution.isolation: process``). False for what holds
    a model or a connection, and is only isolated when a config names it."""
    long_completion: ClassVar[int] = 100_000
    """Characters of the longest completion tried."""
    most_seconds: ClassVar[float] = 10.0
    """For the longest completion. A completion of 100 000 characters that takes longer is mostly a
    regular expression that backtracks."""

    def make(self) -> Any:
        raise NotImplementedError("return the reward to be checked, a provider or a function")

    # -- the checks ---------------------------------------------------------------------------

    def test_one_finite_number_or_none_for_each_completion(self) -> None:
        # What is no reward is an error of the scorer, which says what was returned.
        outcomes = self._score(self.completions)
        values = {o.value for o in outcomes if isinstance(o, Value)}
        assert len(values) > 1 or len(self.completions) < 2, (
            f"all of {list(self.completions)} get {values}: give completions that differ, or "
            "nothing here can be seen to stay with its completion"
        )

    def test_a_score_stays_with_its_completion(self) -> None:
        forward = self._score(self.completions)
        backward = self._score(self.completions[::-1])
        if self.deterministic:
            assert backward[::-1] == forward, "in another order they are scored differently"

    def test_scored_again_it_is_the_same(self) -> None:
        if not self.deterministic or stateful(self.make()):
            return
        reward = self.make()
        scorer = self._scorer(reward)
        try:
            rows = self._rollouts(self.completions)
            first, second = (scorer.score(step, rows).outcomes_F_B for step in range(2))
        finally:
            scorer.close()
        assert first == second, "the same rollouts are scored differently in the next step"

    def test_other_groups_change_nothing(self) -> None:
        """Unless it says ``needs_batch``, as functions in TRL's convention do."""
        if not self.deterministic or getattr(as_provider(self.make()), "needs_batch", False):
            return
        alone = self._score(self.completions)
        others = [*self._rollouts(self.completions), *self._rollouts(ODD[:4], group=1)]
        scorer = self._scorer(self.make(), overlap=False)
        try:
            [beside] = scorer.score(0, others).outcomes_F_B
        finally:
            scorer.close()
        assert list(beside[: len(alone)]) == alone, (
            "a group is scored differently beside another one: say needs_batch = True, or it "
            "depends on which groups happen to be scored together"
        )

    def test_odd_completions_are_scored_or_abstained_from(self) -> None:
        for text in ODD:
            assert len(self._score((text, self.completions[0]))) == 2

    def test_a_long_completion_takes_no_longer_than_it_may(self) -> None:
        for text in ("x", "<think>", "1 ", "\n"):
            started = time.perf_counter()
            self._score((text * (self.long_completion // len(text)), self.completions[0]))
            seconds = time.perf_counter() - started
            assert seconds < self.most_seconds, f"{text!r} repeated took {seconds:.1f} s"

    def test_rollouts_that_failed_are_not_its_concern(self) -> None:
        broken = [self._rollout(0, 0, "", error="tool died")]
        scorer = self._scorer(self.make())
        try:
            [[outcome]] = scorer.score(0, broken).outcomes_F_B
        finally:
            scorer.close()
        assert not isinstance(outcome, Value | Failed)

    def test_it_scores_the_same_in_a_process_of_its_own(self) -> None:
        if not self.isolates:
            return
        there = self._score(self.completions, isolation="process")
        if self.deterministic:
            assert there == self._score(self.completions)

    # -- inside -------------------------------------------------------------------------------

    def _score(self, texts: Sequence[str], **execution: Any) -> list[RewardOutcome]:
        scorer = self._scorer(self.make(), **execution)
        try:
            [outcomes] = scorer.score(0, self._rollouts(texts)).outcomes_F_B
        finally:
            scorer.close()
        return list(outcomes)

    def _scorer(self, reward: Any, **execution: Any) -> Scorer:
        return Scorer([Reward(provider=reward, execution=RewardExecution(**execution))])

    def _rollouts(self, texts: Sequence[str], group: int = 0) -> list[Rollout]:
        return [self._rollout(group, sample, text) for sample, text in enumerate(texts)]

    def _rollout(self, group: int, sample: int, text: str, error: str | None = None) -> Rollout:
        content: Any = "a question"
        if self.conversational:
            content = ({"role": "user", "content": content},)
        ids = tuple(text.encode("utf-8", "surrogatepass")) or (0,)
        return Rollout(
            prompt=Prompt(id=f"suite/{group}", content=content, columns=dict(self.columns)),
            prompt_ids=(1, 2, 3),
            group=group,
            sample=sample,
            spans=(Span(token_ids=ids, logprobs=(-0.5,) * len(ids), policy_version=0),),
            text=text,
            finish_reason="error" if error else "stop",
            error=error,
        )
