"""ASGI middleware for `vllm serve --middleware`: no route without the bearer token.

vLLM's own `--api-key` guards `/v1`, `/v2`, `/inference` and `/cohere` only (0.32.0). Open remain,
among others, `/invocations`, `/tokenize`, `/metrics`, and in development mode everything that
replaces weights or calls methods of the workers.
"""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

TOKEN = "GRPO_VLLM_TOKEN"
INSTANCE = "GRPO_VLLM_INSTANCE"
OPEN = ("/health",)
"""Says whether the engine lives, and nothing else."""


class Guard:
    """Answers 401 where the token is missing or wrong, and names this process in every answer.

    Raises:
        RuntimeError: the environment has no token; a server must not start unprotected.
    """

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        token = os.environ.get(TOKEN, "")
        if not token:
            raise RuntimeError(f"{TOKEN} is not set: start the server with `grpo serve`")
        self._app = app
        self._expected = f"Bearer {token}".encode()
        # Two server processes behind one port would have two names; there is one by default.
        self._instance = (os.environ.get(INSTANCE) or secrets.token_hex(8)).encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope.get("path") not in OPEN and not self._knows(scope):
            if scope["type"] == "websocket":
                return await send({"type": "websocket.close", "code": 1008})
            body = b'{"error": "Unauthorized: every route needs the bearer token"}'
            headers = [(b"content-type", b"application/json"), (b"www-authenticate", b"Bearer")]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            return await send({"type": "http.response.body", "body": body})

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-grpo-instance", self._instance),
                ]
            await send(message)

        return await self._app(scope, receive, named)

    def _knows(self, scope: Scope) -> bool:
        given = [value for name, value in scope.get("headers", ()) if name == b"authorization"]
        # Compared in constant time, so that answers do not tell how much of a guess was right.
        return len(given) == 1 and hmac.compare_digest(given[0], self._expected)
