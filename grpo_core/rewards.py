"""Plain functions as reward providers: TRL's convention, unchanged.

``fn(prompts, completions, completion_ids, **columns) -> list[float | None]``, sync or async. All
arguments are passed by name, one entry per completion; a function that does not take ``**kwargs``
gets those it names. Beside the columns there are ``trainer_state`` (``TrainerState``),
``log_extra(column, values)`` and ``log_metric(name, value)`` (``RewardLog``).
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast, runtime_checkable

from grpo_core.errors import ConfigError, RewardError
from grpo_core.protocols import RewardFunction, RewardProvider
from grpo_core.settings import OnError, RewardExecution
from grpo_core.types import Abstained, Failed, RewardOutcome, Rollout, ScoreRequest, Value


@dataclass(frozen=True, kw_only=True, slots=True)
class Reward:
    """A provider with what the run does with its scores.

    Example: ``Reward(provider=exact_match, weight=0.5)``.
    """

    provider: RewardProvider | RewardFunction | RewardRecipe
    weight: float = 1.0
    """Rewards are summed with these weights."""
    label: str | None = None
    """Its name in metrics and errors; the provider's own when ``None``."""
    on_error: OnError = "stop"
    """``drop`` takes a rollout on which it failed out of its group, ``drop-group`` the whole group,
    and both count it in ``reward/<name>/failed``; a step in which nothing succeeded stops the run
    all the same. With weight 0 nothing is dropped."""
    execution: RewardExecution = field(default_factory=RewardExecution)
    """Timeout, retries, isolation."""
    source: str | None = None
    """The distribution and version it came from, for errors."""


@runtime_checkable
class RewardRecipe(Protocol):
    """How a worker process makes a provider that this process need not hold."""

    @property
    def name(self) -> str: ...

    def make(self) -> RewardProvider | RewardFunction: ...


class CallableReward:
    """A function in TRL's convention, seen as a ``RewardProvider``."""

    needs_batch = True
    """TRL calls once per step: a function may compare completions over all groups."""

    def __init__(self, function: RewardFunction) -> None:
        """Raises ``ConfigError`` when ``function`` cannot be called."""
        if not callable(function):
            raise ConfigError(
                f"a reward must be callable or have a score method, not {type(function).__name__}"
            )
        self._function = function
        self._accepts, self._requires = _signature(function)

    @property
    def name(self) -> str:
        function = _innermost(self._function)
        name = getattr(function, "__name__", None)
        return str(name) if name else type(function).__name__

    @property
    def is_async(self) -> bool:
        """Whether calling it is known to give an awaitable."""
        function = _innermost(self._function)
        return any(map(inspect.iscoroutinefunction, (function, type(function).__call__)))

    def score(self, request: ScoreRequest) -> Any:
        """One outcome per rollout, or an awaitable of them."""
        arguments = _arguments(request)
        missing = sorted(self._requires - arguments.keys())
        if missing:
            raise RewardError(
                f"asks for {missing[0]!r}, which the data do not have; there are: "
                f"{', '.join(sorted(arguments))}"
            )
        if self._accepts is not None:
            arguments = {k: v for k, v in arguments.items() if k in self._accepts}
        answer = self._function(**arguments)
        if inspect.isawaitable(answer):
            return _awaited(answer)
        return as_outcomes(answer)


async def _awaited(answer: Any) -> list[RewardOutcome]:
    return as_outcomes(await answer)


def as_provider(reward: RewardProvider | RewardFunction) -> RewardProvider:
    """The object itself if it has ``score``, else a function's adapter."""
    if hasattr(reward, "score"):
        return cast("RewardProvider", reward)
    return CallableReward(reward)


def stateful(reward: object) -> bool:
    """Whether it says that it has state."""
    return callable(getattr(reward, "state_dict", None))


def as_outcomes(answer: object) -> list[RewardOutcome]:
    """Numbers, ``None`` and outcomes to outcomes.

    Raises:
        RewardError: not a sequence (a dict would be read as its keys), or an entry that is no
            number; says which entry.
    """
    if hasattr(answer, "tolist"):
        answer = cast("Any", answer).tolist()
    if not isinstance(answer, Sequence) or isinstance(answer, str):
        raise RewardError(f"returned a {type(answer).__name__}, not a list of numbers or None")
    return [_as_outcome(index, entry) for index, entry in enumerate(answer)]


def _as_outcome(index: int, entry: object) -> RewardOutcome:
    if entry is None:
        return Abstained()
    if isinstance(entry, Abstained | Failed):
        return entry
    if isinstance(entry, Value):
        entry = entry.value
    if hasattr(entry, "item"):
        entry = cast("Any", entry).item()
    if not isinstance(entry, (int, float)):
        raise RewardError(
            f"returned {entry!r} ({type(entry).__name__}) for completion {index}; expected a "
            "number or None"
        )
    return Value(value=float(entry))


def _innermost(function: Any) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    return function


def _arguments(request: ScoreRequest) -> dict[str, Any]:
    rollouts = request.rollouts_B
    columns = {name: None for r in rollouts for name in r.prompt.columns}
    extras = {name: None for r in rollouts for name in r.extra}
    return {
        **{name: [_own(r.extra.get(name)) for r in rollouts] for name in extras},
        **{name: [_own(r.prompt.columns.get(name)) for r in rollouts] for name in columns},
        "prompts": [_prompt_content(r) for r in rollouts],
        "completions": [r.completion for r in rollouts],
        "completion_ids": [list(r.token_ids) for r in rollouts],
        "trainer_state": request.trainer_state,
        "log_extra": request.log.extra,
        "log_metric": request.log.metric,
    }


def _own(value: Any) -> Any:
    # A function that sorts a list in place would sort it for the next reward and epoch too.
    return copy.deepcopy(value) if isinstance(value, list | dict | set) else value


def _prompt_content(rollout: Rollout) -> Any:
    content = rollout.prompt.content
    return content if isinstance(content, str) else [dict(message) for message in content]


def _signature(function: Callable[..., Any]) -> tuple[frozenset[str] | None, frozenset[str]]:
    """The argument names that a function takes (``None``: any), and those it cannot do without."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None, frozenset()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    required = frozenset(p.name for p in named if p.default is p.empty)
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None, required
    return frozenset(p.name for p in named), required
