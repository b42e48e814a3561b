"""The rewards of a taskset, for finished rollouts."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter
from verifiers.v1 import (
    AgentConfig,
    AgentInfo,
    AssistantMessage,
    MessageNode,
    ModelCall,
    SubprocessConfig,
    Trace,
    TraceTask,
)
from verifiers.v1.runtimes import make_runtime
from verifiers.v1.state import state_cls
from verifiers.v1.types import Message as AnyMessage

from grpo_core.errors import ConfigError, DataError
from grpo_core.types import Failed, RewardOutcome, Value
from grpo_verifiers.config import VerifiersRewardConfig
from grpo_verifiers.tasks import COLUMN, AnyTask, needs_runtime, task_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from grpo_core.protocols import BuildContext
    from grpo_core.types import Rollout, ScoreRequest

MESSAGE: TypeAdapter[Any] = TypeAdapter(AnyMessage)


class VerifiersReward:
    """``trace.reward`` of verifiers: its rewards and judges of a task, weighted and summed.

    A rollout becomes a trace of prompt and answer; the task's ``setup``, ``finalize`` and ``score``
    see it as they would see their own. All rollouts of a request are scored at the same time.
    """

    Config = VerifiersRewardConfig
    name = "verifiers"

    def __init__(
        self, config: VerifiersRewardConfig | None = None, context: BuildContext | None = None
    ) -> None:
        self._config = config or VerifiersRewardConfig()

    async def score(self, request: ScoreRequest) -> Sequence[RewardOutcome]:
        """One outcome per rollout, in order; what raises or takes too long has failed.

        Raises:
            DataError: a prompt is not of the task ``verifiers``.
            ConfigError: the taskset needs a runtime, and the option says ``none``.
        """
        return await asyncio.gather(*(self._outcome(r) for r in request.rollouts_B))

    async def _outcome(self, rollout: Rollout) -> RewardOutcome:
        key = rollout.prompt.columns.get(COLUMN)
        if key is None:
            raise DataError(
                f"prompt {rollout.prompt.id!r} has no column {COLUMN!r}; this reward scores "
                "prompts of the task verifiers only"
            )
        task = task_of(key)
        self._require_runtime(task)
        trace = trace_of(task, rollout)
        limit = task.data.timeout.scoring or self._config.timeout
        try:
            await asyncio.wait_for(self._scored(task, trace), limit)
        except TimeoutError:
            return Failed(kind="timeout", reason=f"no score within {limit:g} s")
        except Exception as error:
            # verifiers wraps what a reward raised; the cause says more.
            cause = error.__cause__ or error
            return Failed(kind="error", reason=f"raised {type(cause).__name__}: {cause}")
        missing = [name for name, reward in trace.rewards.items() if reward is None]
        if missing or not trace.rewards:
            what = f"rewards {missing} were" if missing else "no reward was"
            return Failed(kind="invalid", reason=f"{what} computed")
        return Value(value=trace.reward)

    async def _scored(self, task: AnyTask, trace: Any) -> None:
        if self._config.runtime == "none":
            # With None, verifiers would leave out what needs a runtime; see _require_runtime.
            await task.score(trace, None)
            return
        runtime = make_runtime(SubprocessConfig(), name=f"grpo-{trace.id[:12]}")
        runtime.env = dict(task.runtime_env())
        await runtime.start()
        try:
            await task.setup(trace, runtime)
            await task.finalize(trace, runtime)
            await task.score(trace, runtime)
        finally:
            await runtime.stop()

    def _require_runtime(self, task: AnyTask) -> None:
        methods = needs_runtime(task) if self._config.runtime == "none" else []
        if methods:
            raise ConfigError(
                f"{', '.join(methods)} of {type(task).__name__} need a runtime, and would silently "
                "be left out: set the reward's option `runtime: subprocess`, which runs the "
                "taskset's code on this machine without isolation"
            )


def trace_of(task: AnyTask, rollout: Rollout) -> Any:
    """A finished trace: the prompt's messages, then the completion as the sampled answer."""
    content = rollout.prompt.content
    shown = [{"role": "user", "content": content}] if isinstance(content, str) else content
    nodes: list[MessageNode] = []
    for message in shown:
        parent = len(nodes) - 1 if nodes else None
        nodes.append(MessageNode(parent=parent, message=MESSAGE.validate_python(dict(message))))
    answer = AssistantMessage(content=rollout.text)
    nodes.append(MessageNode(parent=len(nodes) - 1, message=answer, sampled=True))
    finish = "length" if rollout.truncated else "stop"
    return Trace(
        task=TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash),
        state=state_cls(type(task))(),
        agent=AgentInfo(config=AgentConfig()),
        nodes=nodes,
        calls=[ModelCall(node=len(nodes) - 1, finish_reason=finish)],
        is_completed=True,
        ok=True,
        stop_condition="agent_completed",
    )
