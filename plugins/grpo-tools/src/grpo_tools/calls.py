"""Calls of tools and rewards, and what they come to: failures are data."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from grpo_tools.functions import as_text, error_text

if TYPE_CHECKING:
    from grpo_tools.episode import Episode
    from grpo_tools.parsing import Call
    from grpo_tools.workbench import Workbench


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What a call came to, for the model."""

    name: str
    text: str
    failure: str | None = None
    """``unknown``, ``malformed``, ``arguments``, ``error`` or ``timeout``."""


async def run_calls(bench: Workbench, episode: Episode, calls: Sequence[Call]) -> list[Result]:
    """What the calls of one turn come to, in their order; nothing that a tool does is raised."""
    if episode.kind.sequential:
        return [await _run_call(bench, episode, call) for call in calls]
    return list(await asyncio.gather(*(_run_call(bench, episode, call) for call in calls)))


async def _run_call(bench: Workbench, episode: Episode, call: Call) -> Result:
    tools = episode.kind.tools

    def failed(failure: str, message: str) -> Result:
        return Result(name=call.name, text=error_text(message), failure=failure)

    if call.problem is not None:
        return failed("malformed", call.problem)
    if call.name not in tools:
        there = ", ".join(tools) or "none"
        return failed("unknown", f"there is no tool {call.name!r}; there are: {there}")
    try:
        arguments = tools[call.name].checked(call.arguments)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        return failed("arguments", f"wrong arguments for {call.name!r}: {problems}")
    try:
        result = await bench.call(episode.session.functions[call.name], **arguments)
    except TimeoutError as error:
        return failed("timeout", str(error) or "timed out")
    except Exception as error:
        return failed("error", f"{type(error).__name__}: {error}")
    return Result(name=call.name, text=as_text(result))


async def run_reward(bench: Workbench, reward: Callable[[], Any]) -> dict[str, Any]:
    """Plain values, which Parquet and checkpoints take: a number, or why there is none."""
    try:
        value = await bench.call(reward)
    except Exception as error:
        kind = "timeout" if isinstance(error, TimeoutError) else "error"
        return {"environment_failure": [kind, f"raised {type(error).__name__}: {error}"]}
    value = value.item() if hasattr(value, "item") else value
    if value is None or isinstance(value, (int, float)):
        return {"environment_reward": None if value is None else float(value)}
    text = f"returned {value!r:.80} ({type(value).__name__}); expected a number or None"
    return {"environment_failure": ["invalid", text]}
