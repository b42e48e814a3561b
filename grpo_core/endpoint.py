"""HTTP endpoints that a component asks: where, with which key, how long, how many at a time.

One place for what goes wrong with all of them: keys in configs, keys sent after a redirect, a
server that sends a byte a minute, a proxy in the way of this machine's own servers.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from pydantic import AfterValidator, ConfigDict, Field

from grpo_core.errors import ConfigError
from grpo_core.settings import Settings

if TYPE_CHECKING:
    import httpx2

MAY_PASS = (408, 409, 429)
"""Statuses after which the same request may succeed; all of 5xx too."""
JITTER = Random()
"""Of its own: the global generator is the run's, and what it draws next must not depend on a
server."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def _address(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError(f"{url!r} is no http:// or https:// address")
    if parts.username or parts.password:
        raise ValueError("an address must not hold a password; use api_key_env")
    return url.rstrip("/")


def _variable(name: str) -> str:
    # The message does not repeat what was given: it may be the key, and this goes to logs.
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]{0,59}", name):
        raise ValueError(
            "should be the name of an environment variable that holds the key, in capitals, "
            "not the key itself: configs are stored with every run"
        )
    return name


Url = Annotated[str, AfterValidator(_address)]
"""An http(s) address without credentials and without a slash at the end."""
KeyVariable = Annotated[str, AfterValidator(_variable)]
"""The name of an environment variable."""


class EndpointSettings(Settings):
    """Options of every component that asks a server."""

    # Errors of pydantic quote what was given, and that may be a key in the wrong place.
    model_config = ConfigDict(hide_input_in_errors=True)

    url: Url = Field(description="Address of the server: http://localhost:8000.")
    api_key_env: KeyVariable | None = Field(
        default=None, description="Environment variable with the key; null sends none."
    )
    request_timeout: float = Field(default=120.0, gt=0, description="Seconds for one request.")
    max_requests: int = Field(default=16, ge=1, description="Requests at the same time.")
    request_retries: int = Field(
        default=2,
        ge=0,
        le=20,
        description="Further attempts at one request after status 408, 409, 429 or 5xx, or without "
        "a connection, with pauses of 0.5 s, doubled up to 8 s, or what the server asks for up to "
        "60 s (all as in openai-python). A timeout is not tried again.",
    )


class EndpointError(RuntimeError):
    """No connection, a status that is no success, or an answer that is not JSON."""


class Endpoint:
    """Posts JSON, a bounded number of requests at a time, and returns JSON.

    It holds nothing open between sessions, so that it may be used from one event loop after the
    other. Redirects are not followed: the key goes where the config says.
    """

    def __init__(self, settings: EndpointSettings, *, who: str) -> None:
        """Raises ``ConfigError`` when httpx2 is not installed or the key's variable is not set.

        Args:
            who: asks, for errors: ``"reward 'llm-judge'"``.
        """
        try:
            import httpx2
        except ImportError as error:
            raise ConfigError(f"{who} needs httpx2 ({error}): pip install httpx2") from error
        self._http = httpx2
        self._settings = settings
        self._headers: dict[str, str] = {}
        if settings.api_key_env is not None:
            key = os.environ.get(settings.api_key_env, "").strip()
            if not key:
                raise ConfigError(
                    f"{who}: the environment variable {settings.api_key_env} (api_key_env) is not "
                    "set"
                )
            self._headers["Authorization"] = f"Bearer {key}"
        # A semaphore belongs to the event loop that first waits for it; loops come and go.
        self._limits: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = (
            WeakKeyDictionary()
        )

    @asynccontextmanager
    async def session(self) -> AsyncIterator[httpx2.AsyncClient]:
        """Connections for the requests of one call."""
        async with self._http.AsyncClient(
            headers=self._headers,
            timeout=self._settings.request_timeout,
            # Bounded by the semaphore; waiting for a connection would count as the server's time.
            limits=self._http.Limits(max_connections=None),
            follow_redirects=False,
            # A proxy from the environment cannot reach this machine's own servers.
            trust_env=urlsplit(self._settings.url).hostname not in LOOPBACK,
        ) as client:
            yield client

    async def post(self, client: httpx2.AsyncClient, path: str, body: Mapping[str, Any]) -> Any:
        """What the server answers to ``body`` at ``url + path``.

        Raises:
            TimeoutError: no whole answer within ``request_timeout``, counted from sending.
            EndpointError: anything else that is not an answer; holds address and status.
        """
        for attempt in range(self._settings.request_retries + 1):
            last = attempt == self._settings.request_retries
            try:
                response = await self._once(client, path, body)
            except EndpointError:
                if last:
                    raise
                await asyncio.sleep(_pause(attempt, None))
                continue
            if response.status_code == 200:
                break
            if last or not (response.status_code in MAY_PASS or response.status_code >= 500):
                raise EndpointError(
                    f"{self._settings.url}{path}: status {response.status_code}: "
                    f"{response.text[:300]}"
                )
            await asyncio.sleep(_pause(attempt, response.headers.get("retry-after")))
        try:
            return response.json()
        except ValueError as error:
            raise EndpointError(
                f"{self._settings.url}{path}: not JSON: {response.text[:300]!r}"
            ) from error

    async def _once(
        self, client: httpx2.AsyncClient, path: str, body: Mapping[str, Any]
    ) -> httpx2.Response:
        address = f"{self._settings.url}{path}"
        async with self._limit():
            try:
                # The client's own timeout starts anew with every byte that a slow server sends.
                async with asyncio.timeout(self._settings.request_timeout):
                    return await client.post(address, json=body)
            except (TimeoutError, self._http.TimeoutException) as error:
                seconds = self._settings.request_timeout
                raise TimeoutError(f"{address}: no answer within {seconds:g} s") from error
            except self._http.TransportError as error:
                raise EndpointError(f"{address}: {type(error).__name__}: {error}") from error

    def _limit(self) -> asyncio.Semaphore:
        loop = asyncio.get_running_loop()
        return self._limits.setdefault(loop, asyncio.Semaphore(self._settings.max_requests))


def _pause(attempt: int, asked: str | None) -> float:
    """Seconds before the next attempt; ``asked`` is a Retry-After header."""
    if asked is not None and asked.isdecimal() and 0 < int(asked) <= 60:
        return float(asked)
    # Apart from each other: requests that were refused together would come back together.
    return float(min(0.5 * 2**attempt, 8.0)) * (1 - 0.25 * JITTER.random())
