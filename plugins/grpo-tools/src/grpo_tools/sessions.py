"""What a rollout takes place in: fixed functions, or an instance of the user's class."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from grpo_core.errors import ConfigError
from grpo_tools.functions import Tool, make_tool

if TYPE_CHECKING:
    from grpo_core.types import Prompt

RESERVED = frozenset({"reset", "step", "reward", "get_reward", "close"})
"""Public methods that are no tools."""


class Functions:
    """The same functions for all rollouts; the calls of a turn run together."""

    name = "tools"
    sequential = False
    rewards = False
    resets = answers = False

    def __init__(self, functions: Sequence[Callable[..., Any]]) -> None:
        """Raises ``ConfigError`` when one cannot be described, or two have one name."""
        self.tools: dict[str, Tool] = {}
        self._functions: dict[str, Callable[..., Any]] = {}
        for function in functions:
            tool = make_tool(function)
            if tool.name in self.tools:
                raise ConfigError(f"two tools are called {tool.name!r}; rename one of them")
            self.tools[tool.name] = tool
            self._functions[tool.name] = function
        if not self.tools:
            raise ConfigError(
                "environment 'tools' has no tools; name functions under environment.tools, as "
                "package.module:function or file.py:function"
            )

    def open(self) -> Session:
        """One for each rollout."""
        return Session(None, self._functions)


class Factory:
    """A class of the user, or anything that makes an instance when it is called.

    An instance has ``reset(**row)``, which may return text for the prompt's last user message.
    Other public methods are tools. Optional are ``reward()`` (or TRL's ``get_reward()``),
    ``step(text)``, which answers a turn without calls as the user and ends the rollout with
    ``None``, an attribute ``done``, which ends it after a call, and ``close()``. All may be async.
    """

    sequential = True
    """Methods of one instance share its state: the calls of a turn run in their order."""
    resets = True

    def __init__(self, name: str, make: Callable[[], Any]) -> None:
        """Raises ``ConfigError`` when no instance can be made, or it lacks what it must have."""
        self.name = name
        self._make = make
        try:
            example = make()
        except Exception as error:
            raise ConfigError(
                f"environment {name!r} cannot be made: {type(error).__name__}: {error}; it is "
                "called without arguments, once per rollout"
            ) from error
        if not callable(getattr(example, "reset", None)):
            raise ConfigError(
                f"environment {name!r} ({type(example).__name__}) has no reset(**row) method, "
                "which gets the columns of the prompt's row"
            )
        self.answers = callable(getattr(example, "step", None))
        self.rewards = _reward_method(example) is not None
        self.label = type(example).__name__
        self.tools = {key: make_tool(method) for key, method in _methods(example).items()}
        if not self.tools and not self.answers:
            raise ConfigError(
                f"environment {name!r} ({self.label}) has neither public methods to be tools nor "
                "step(text) to answer with; every rollout would be a single turn"
            )

    def open(self) -> Session:
        """A new instance, for one rollout."""
        instance = self._make()
        return Session(instance, _methods(instance))


Kind = Functions | Factory


class Session:
    """One rollout's functions, and its instance if there is one."""

    def __init__(self, instance: Any, functions: Mapping[str, Callable[..., Any]]) -> None:
        self.functions = functions
        self.reset: Callable[..., Any] | None = getattr(instance, "reset", None)
        self.step: Callable[..., Any] | None = getattr(instance, "step", None)
        self.reward: Callable[[], Any] | None = _reward_method(instance)
        self.close: Callable[[], Any] | None = getattr(instance, "close", None)
        self._instance = instance

    @property
    def done(self) -> bool:
        """Whether the environment says that there is nothing left to do."""
        return bool(getattr(self._instance, "done", False))


def row_of(prompt: Prompt, reset: Callable[..., Any], seed: int) -> dict[str, Any]:
    """What ``reset`` is called with: the columns, the prompt and a seed, as far as it takes them.

    ``rollout_seed`` is a function of (seed, step, prompt, sample): an environment that draws its
    own chance from it does so again when a run is resumed.
    """
    content = prompt.content
    row = {
        "prompt": content if isinstance(content, str) else [dict(m) for m in content],
        "rollout_seed": seed,
        **prompt.columns,
    }
    parameters = inspect.signature(reset).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return row
    return {p.name: row[p.name] for p in parameters if p.name in row}


def _methods(instance: Any) -> dict[str, Callable[..., Any]]:
    found = inspect.getmembers(instance, inspect.ismethod)
    return {k: m for k, m in found if not k.startswith("_") and k not in RESERVED}


def _reward_method(instance: Any) -> Callable[[], Any] | None:
    return getattr(instance, "reward", None) or getattr(instance, "get_reward", None)
