"""A worker process: builds one provider and answers requests until its parent is gone.

Started by ``grpo_core.scoring.processes``, which says what goes over the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import faulthandler
import inspect
import json
import os
import pickle
import signal
import sys
import threading
from multiprocessing.connection import Connection
from typing import Any

from grpo_core.errors import GRPOError, RewardError
from grpo_core.rewards import RewardRecipe, as_provider, stateful
from grpo_core.scoring.answers import answer_of, encoded, failure_of, trace_of
from grpo_core.types import ScoreRequest

PR_SET_PDEATHSIG = 1


def main(descriptor: int) -> None:
    connection = Connection(descriptor)
    # What the provider prints must not get between the messages, nor may it read the lifeline.
    lifeline = os.dup(0)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    faulthandler.enable()
    first = pickle.loads(connection.recv_bytes())
    sys.path[:] = first["path"]
    die_with(first["parent"], lifeline)
    if first["memory_mb"] is not None:
        import resource

        limit = first["memory_mb"] << 20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with asyncio.Runner() as runner:
        serve(connection, connection.recv_bytes(), runner)


def serve(connection: Connection, payload: bytes, runner: asyncio.Runner) -> None:
    """Build the provider, then answer each message with one."""
    try:
        made: Any = pickle.loads(payload)
        made = made.make() if isinstance(made, RewardRecipe) else made
        provider, has_state = as_provider(made), stateful(made)
        hello = {
            "has_state": has_state,
            "per_rollout": bool(getattr(provider, "per_rollout", False)) and not has_state,
            "needs_batch": has_state or bool(getattr(provider, "needs_batch", False)),
            "state": state_of(made) if has_state else None,
        }
    except BaseException as error:
        connection.send_bytes(told(error))
        return
    connection.send_bytes(json.dumps(hello).encode())
    while True:
        try:
            kind, content = pickle.loads(connection.recv_bytes())
        except EOFError:
            return
        except BaseException as error:
            connection.send_bytes(told(error))
            continue
        try:
            answer: dict[str, Any] = {}
            if kind == "load":
                made.load_state_dict(content)
            else:
                answer = scored(provider, content, runner)
            if has_state:
                answer["state"] = state_of(made)
            frame = json.dumps(answer).encode()
        except BaseException as error:
            frame = told(error)
        connection.send_bytes(frame)


def scored(provider: Any, request: ScoreRequest, runner: asyncio.Runner) -> dict[str, Any]:
    returned = provider.score(request)
    if inspect.isawaitable(returned):
        returned = runner.run(_awaited(returned))
    answer = answer_of(returned, request)
    return {
        "outcomes": [encoded(outcome) for outcome in answer.outcomes_B],
        "columns": answer.columns,
        "metrics": answer.metrics,
    }


async def _awaited(awaitable: Any) -> Any:
    return await awaitable


def state_of(provider: Any) -> Any:
    """Raises ``RewardError`` for what JSON does not give back equal."""
    state = provider.state_dict()
    with contextlib.suppress(TypeError, ValueError):
        if json.loads(json.dumps(state)) == state:
            return state
    raise RewardError(
        "has a state_dict() that is not plain data (None, bool, int, float, str, list, dict with "
        "str keys), which is all that comes back from a worker process"
    )


def told(error: BaseException) -> bytes:
    """An exception as a message."""
    failure = failure_of(error)
    about = {
        "text": failure.reason,
        "kind": failure.kind,
        "final": isinstance(error, GRPOError),
        "traceback": trace_of(error),
    }
    return json.dumps({"error": about}).encode()


def die_with(parent: int, lifeline: int) -> None:
    """End when the parent does, however it ended: no worker may outlive its run."""
    if sys.platform == "linux":
        # Works while C code holds the interpreter's lock, when no thread of ours could.
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    def watch() -> None:
        os.read(lifeline, 1)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, name="grpo-lifeline", daemon=True).start()


if __name__ == "__main__":
    main(int(sys.argv[1]))
