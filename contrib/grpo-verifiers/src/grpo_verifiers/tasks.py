"""Tasks of verifiers, loaded again from a few words that a prompt carries."""

from __future__ import annotations

import inspect
import itertools
import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypeAlias

from pydantic import ValidationError
from verifiers.v1 import SingleAgentEnv, Task
from verifiers.v1.utils import loaders
from verifiers.v1.utils.decorators import discover_decorated

from grpo_core.errors import ConfigError, DataError

COLUMN = "verifiers"
"""The column that says which task a prompt is: taskset, args and index, as JSON."""

AnyTask: TypeAlias = Any
"""``verifiers.v1.Task`` of whatever data; the package ships no types."""


def load(taskset: str, args: dict[str, Any], count: int | None) -> Sequence[AnyTask]:
    """The first ``count`` tasks of an installed taskset; all of them when ``None``.

    Raises:
        ConfigError: it is not installed, refuses its arguments, never ends, or needs what a single
            answer cannot give (tools, a container, several agents).
    """
    return _load(taskset, json.dumps(args, sort_keys=True), count)


def key_of(taskset: str, args: dict[str, Any], index: int) -> str:
    """What goes into ``COLUMN``."""
    return json.dumps({"taskset": taskset, "args": args, "index": index}, sort_keys=True)


def task_of(key: str) -> AnyTask:
    """The task that a key names.

    Raises:
        DataError: it is no such key, or the taskset has become shorter.
    """
    try:
        words = json.loads(key)
        taskset, args, index = words["taskset"], words["args"], int(words["index"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"the column {COLUMN!r} holds {key!r:.100}, which the task verifiers has not written; "
            "this reward scores that task's prompts only"
        ) from error
    # In blocks, so that not every prompt loads the taskset from its beginning.
    tasks = load(taskset, args, (index // 1024 + 1) * 1024)
    if index >= len(tasks):
        raise DataError(f"taskset {taskset!r} has {len(tasks)} tasks and none of number {index}")
    return tasks[index]


def needs_runtime(task: AnyTask) -> list[str]:
    """Names of the task's methods that cannot be called without a runtime."""
    found = [
        name
        for name in ("setup", "finalize")
        if getattr(type(task), name) is not getattr(Task, name)
    ]
    for function in (*task.hooks("metric"), *task.hooks("reward")):
        parameter = inspect.signature(function).parameters.get("runtime")
        if parameter is not None and parameter.default is inspect.Parameter.empty:
            found.append(function.__name__)
    return found


@lru_cache(maxsize=8)
def _load(name: str, args: str, count: int | None) -> Sequence[AnyTask]:
    try:
        if loaders.environment_class(name) is not SingleAgentEnv:
            raise ConfigError(
                f"taskset {name!r} brings an environment of its own (several agents, or several "
                "turns); only single answers are supported here"
            )
        model = loaders.taskset_config_type(name)
        taskset = loaders.load_taskset(model.model_validate({**json.loads(args), "id": name}))
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"there is no taskset {name!r}: {error}; install its package first"
        ) from error
    except (AttributeError, TypeError) as error:
        raise ConfigError(f"{name!r} is no taskset of verifiers 0.4: {error}") from error
    except ValidationError as error:
        raise ConfigError(f"taskset {name!r} refuses its args: {error}") from error
    if count is None and not taskset.bounded:
        raise ConfigError(f"taskset {name!r} never ends; set `size`")
    tasks = list(taskset if count is None else itertools.islice(taskset, count))
    if tasks:
        _refuse_more_than_one_answer(name, taskset, tasks[0])
    return tasks


def _refuse_more_than_one_answer(name: str, taskset: Any, task: AnyTask) -> None:
    problem = None
    if type(task).NEEDS_CONTAINER:
        problem = "needs a container"
    elif type(taskset).toolsets(taskset.config) or type(task).toolsets(task.config):
        problem = "offers tools to the model, which takes several turns"
    elif discover_decorated(task, "intercept") or task.hooks("stop"):
        problem = "steps in between turns (@vf.intercept, @vf.stop)"
    if problem is not None:
        raise ConfigError(f"taskset {name!r} {problem}; only single answers are supported here")
