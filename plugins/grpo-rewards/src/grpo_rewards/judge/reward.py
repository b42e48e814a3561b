"""The reward of a judge's opinion."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import TypeAdapter, ValidationError

from grpo_core.endpoint import Endpoint, EndpointError
from grpo_core.errors import DataError
from grpo_core.types import Abstained, Failed, RewardOutcome, Value
from grpo_rewards.judge.cache import DiskCache, MemoryCache, key_of
from grpo_rewards.judge.config import Criterion, LLMJudgeConfig
from grpo_rewards.judge.endpoint import PATH, ask, request_body
from grpo_rewards.judge.questions import (
    DEFAULT_INSTRUCTIONS,
    Question,
    pairwise_question,
    rubric_question,
    score_question,
    task_text,
)
from grpo_rewards.judge.verdicts import MalformedVerdictError, pairwise_of, rubric_of, score_of
from grpo_rewards.per_rollout import column_of

if TYPE_CHECKING:
    import httpx2

    from grpo_core.protocols import BuildContext
    from grpo_core.types import Rollout, ScoreRequest

CRITERIA = TypeAdapter(tuple[Criterion, ...])


@dataclass(frozen=True, kw_only=True, slots=True)
class _Asked:
    """A question about a rollout, and how the reply is read."""

    question: Question
    read: Callable[[str], float]
    rollout: Rollout


_Row = list[_Asked | float]
"""What an outcome is the mean of: questions, and results that are known without asking."""


class LLMJudge:
    """A language model behind any OpenAI-compatible chat endpoint grades completions, 0.0 to 1.0.

    Mode ``score``: a number on a scale. Mode ``rubric``: the weighted share of the criteria that
    are met (arXiv 2507.17746). Mode ``pairwise``: the mean result against every other completion
    of the group, or against the prompt's reference answer; each pair is asked in both orders,
    because judges prefer one place (arXiv 2306.05685), so a group of G costs G (G - 1) requests.
    Only that mode depends on the group.

    Requests run at the same time, at most ``max_requests`` per event loop, with temperature 0. A
    reply that is not what was asked for fails this rollout (``invalid``), as do errors and timeouts
    of the server; nothing becomes 0. Well-formed replies are kept by everything that decides them
    (address, model, messages, settings), so that trying again asks only what is missing.

    Raises:
        ConfigError: httpx2 is not installed, the key's variable is not set, or ``cache_path``
            cannot be used.
        DataError: while scoring, where a prompt lacks a column, or its criteria are malformed.
    """

    Config = LLMJudgeConfig
    name = "llm-judge"

    def __init__(self, config: LLMJudgeConfig, context: BuildContext | None = None) -> None:
        self._config = config
        self._endpoint = Endpoint(config, who=f"reward {self.name!r}")
        path = config.cache_path
        self._cache = MemoryCache() if path is None else DiskCache(path)
        self._log = None if config.log_path is None else Path(config.log_path)
        self._instructions = config.instructions or DEFAULT_INSTRUCTIONS

    async def score(self, request: ScoreRequest) -> Sequence[RewardOutcome]:
        """One outcome per rollout, in order; in mode pairwise groups must be whole."""
        groups: dict[int, list[Rollout]] = {}
        for rollout in request.rollouts_B:
            groups.setdefault(rollout.group, []).append(rollout)
        # Before anything is sent: what is wrong with the data should cost no request.
        rows = [self._asked(r, groups[r.group]) for r in request.rollouts_B]
        replies: dict[str, asyncio.Task[str | Failed]] = {}
        async with self._endpoint.session() as client, asyncio.TaskGroup() as tasks:
            for asked in (a for row in rows if isinstance(row, list) for a in row):
                # Equal completions make equal questions, and both of a pair ask the same two.
                if isinstance(asked, _Asked) and (key := self._key(asked)) not in replies:
                    replies[key] = tasks.create_task(self._reply(client, key, asked))
        return [self._outcome(row, replies) if isinstance(row, list) else row for row in rows]

    def _key(self, asked: _Asked) -> str:
        return key_of(self._config.url + PATH, request_body(self._config, asked.question))

    def _outcome(self, row: _Row, replies: dict[str, asyncio.Task[str | Failed]]) -> RewardOutcome:
        results = []
        for asked in row:
            if isinstance(asked, float):
                results.append(asked)
                continue
            reply = replies[self._key(asked)].result()
            if isinstance(reply, Failed):
                # A mean over the verdicts that did come would be of other opponents.
                return reply
            results.append(asked.read(reply))
        return Value(value=sum(results) / len(results))

    def _asked(self, rollout: Rollout, group: Sequence[Rollout]) -> _Row | RewardOutcome:
        """What to ask about a rollout, or its outcome where that is known without asking."""
        config, task = self._config, task_text(rollout.prompt)
        answer = self._answer(rollout)
        if answer is None:
            return Value(value=0.0)
        reference = None
        if config.reference_column is not None:
            held = column_of(rollout.prompt, config.reference_column, self.name)
            if held is None:
                return Abstained(reason=f"column {config.reference_column!r} is null")
            reference = str(held)
        if config.mode == "pairwise":
            return self._pairs(rollout, task, answer, reference, group)
        read: Callable[[str], float]
        if config.mode == "rubric":
            criteria = self._criteria(rollout)
            question = rubric_question(task, answer, self._instructions, criteria, reference)
            read = partial(rubric_of, criteria=criteria)
        else:
            question = score_question(task, answer, self._instructions, config.scale, reference)
            read = partial(score_of, scale=config.scale)
        return [_Asked(question=question, read=read, rollout=rollout)]

    def _pairs(
        self,
        rollout: Rollout,
        task: str,
        answer: str,
        reference: str | None,
        group: Sequence[Rollout],
    ) -> _Row | RewardOutcome:
        others = (
            [reference]
            if reference is not None
            else [self._answer(other) for other in group if other.sample != rollout.sample]
        )
        if not others:
            return Abstained(reason="nothing to compare with: the group has one completion")
        row: _Row = []
        for other in others:
            # Known without asking, each as heavy as two questions: the other never came to an
            # answer and has lost, or says the same.
            if other is None or other == answer:
                row += [1.0 if other is None else 0.5] * 2
                continue
            for first, second, read in ((answer, other, pairwise_of), (other, answer, _flipped)):
                question = pairwise_question(task, first, second, self._instructions)
                row.append(_Asked(question=question, read=read, rollout=rollout))
        return row

    def _answer(self, rollout: Rollout) -> str | None:
        """What is judged of a completion; ``None`` when it never comes to an answer."""
        if self._config.after is None:
            return rollout.text
        _, found, answer = rollout.text.rpartition(self._config.after)
        return answer.strip() if found else None

    def _criteria(self, rollout: Rollout) -> tuple[Criterion, ...]:
        column = self._config.criteria_column
        if column is None:
            return self._config.criteria
        held = column_of(rollout.prompt, column, self.name)
        listed = held if isinstance(held, (list, tuple)) else ()
        try:
            criteria = CRITERIA.validate_python(
                [{"text": entry} if isinstance(entry, str) else entry for entry in listed]
            )
        except ValidationError as error:
            raise DataError(
                f"{self.name}: column {column!r} of prompt {rollout.prompt.id!r}: {error}"
            ) from error
        if not any(c.weight > 0 for c in criteria):
            raise DataError(
                f"{self.name}: column {column!r} of prompt {rollout.prompt.id!r} should list "
                f"criteria, one of them with a positive weight, got {held!r}"
            )
        return criteria

    async def _reply(self, client: httpx2.AsyncClient, key: str, asked: _Asked) -> str | Failed:
        """A well-formed reply, from the cache or the judge."""
        reply = self._cache.get(key)
        if reply is not None:
            return reply
        try:
            body = request_body(self._config, asked.question)
            reply = await ask(self._endpoint, client, body)
            asked.read(reply)
        except MalformedVerdictError as error:
            said = f"the judge's verdict cannot be used: {error}; it said {reply!r:.300}"
            return self._logged(asked.rollout, reply, Failed(kind="invalid", reason=said))
        except (TimeoutError, EndpointError) as error:
            kind: Literal["error", "timeout"] = (
                "timeout" if isinstance(error, TimeoutError) else "error"
            )
            return self._logged(asked.rollout, None, Failed(kind=kind, reason=str(error)))
        self._cache.put(key, reply)
        return self._logged(asked.rollout, reply, reply)

    def _logged(self, rollout: Rollout, reply: str | None, result: str | Failed) -> str | Failed:
        """``result``, after a line in the log if there is one."""
        if self._log is not None:
            line = {
                "time": datetime.now(UTC).isoformat(timespec="seconds"),
                "prompt": rollout.prompt.id,
                "sample": rollout.sample,
                "reply": reply,
                "failure": result.reason if isinstance(result, Failed) else None,
            }
            self._log.parent.mkdir(parents=True, exist_ok=True)
            with self._log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        return result


def _flipped(reply: str) -> float:
    return 1.0 - pairwise_of(reply)
