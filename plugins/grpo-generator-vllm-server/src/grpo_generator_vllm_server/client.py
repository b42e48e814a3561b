"""One server over HTTP: every call has a time limit, and every failure names the server."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
import weakref
from collections.abc import Mapping
from typing import Any

import httpx2 as httpx

from grpo_core.errors import ConfigError
from grpo_generator_vllm_server.errors import (
    BadAnswerError,
    RequestRefusedError,
    ServerDownError,
    ServerError,
    ServerHungError,
    ServerLostError,
)

INSTANCE_HEADER = "x-grpo-instance"
"""Set by `grpo_vllm_guard` on every answer: another value is another process."""

QUICK_SECONDS = 30.0
"""For calls that only ask how things are."""

_READ_ATTEMPTS = 2


class Server:
    """A vLLM server by its address.

    Args:
        url: without a trailing slash.
        token: sent as a bearer token with every call; ``None`` sends none.
        connect_seconds: longest wait for a connection.
        ca_file: PEM file with the authorities to trust; ``None`` is the public ones.

    Raises:
        ConfigError: there is no such file, or no certificates are in it.
    """

    def __init__(
        self,
        url: str,
        token: str | None,
        *,
        connect_seconds: float = 10.0,
        ca_file: str | None = None,
    ) -> None:
        self.url = url
        self._connect_seconds = connect_seconds
        headers = {"authorization": f"Bearer {token}"} if token else {}
        # No proxies or .netrc from the environment: a token must reach this server only.
        self._http = httpx.Client(
            base_url=url,
            headers=headers,
            verify=True if ca_file is None else _trusting(ca_file),
            trust_env=False,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
        )
        self._closed = False
        self._lock = threading.Lock()
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self.instance: str | None = None
        """The process that holds the weights, as it was at the sync; ``None`` accepts any."""
        self.seen_instance: str | None = None
        """That of the latest answer; ``None`` where nothing sets it."""

    def __str__(self) -> str:
        return f"vLLM server {self.url}"

    def close(self) -> None:
        """End all calls, those of other threads too."""
        self._closed = True
        self.hang_up()
        self._http.close()

    def hang_up(self) -> None:
        """End the calls that are under way: they raise, and the server stops working on them."""
        # Closing a socket does not wake a thread that reads from it; this does.
        with self._lock:
            found = list(self._sockets)
        for each in found:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def get(self, path: str, *, seconds: float = QUICK_SECONDS) -> Any:
        """JSON of a route that changes nothing, hence asked twice if need be."""
        for attempt in range(1, _READ_ATTEMPTS + 1):
            try:
                return self._call("GET", path, None, seconds).json()
            except json.JSONDecodeError as error:
                raise BadAnswerError(f"{self}: {path} answered something else than JSON") from error
            except ServerLostError:
                if attempt == _READ_ATTEMPTS:
                    raise
        raise AssertionError("unreachable")

    def post(self, path: str, body: Mapping[str, Any] | None, *, seconds: float) -> Any:
        """JSON of a route that may change something; never repeated here.

        Raises:
            ServerDownError: it cannot be reached, did not answer in time, or is another process.
            ServerLostError: it answered 5xx.
            BadAnswerError: the answer is no JSON.
            RequestRefusedError: it answered 4xx.
        """
        response = self._call("POST", path, body, seconds)
        try:
            return response.json()
        except ValueError as error:
            shown = response.text[:200]
            raise BadAnswerError(f"{self}: {path} answered no JSON but {shown!r}") from error

    def post_for_text(self, path: str, body: Mapping[str, Any], *, seconds: float) -> str:
        """As ``post``, for routes that answer with a sentence."""
        return self._call("POST", path, body, seconds).text

    def rpc(self, method: str, *, seconds: float, **arguments: Any) -> list[Any]:
        """Call a method of every worker; what each returned."""
        body = {"method": method, "kwargs": arguments, "timeout": seconds}
        found = self.post("/collective_rpc", body, seconds=seconds + QUICK_SECONDS)
        results = found.get("results") if isinstance(found, dict) else None
        if not isinstance(results, list) or not results:
            raise BadAnswerError(f"{self}: no worker answered {method}: {str(found)[:200]}")
        return results

    def healthy(self, *, seconds: float = QUICK_SECONDS) -> bool:
        """Whether the engine says that it can work."""
        try:
            response = self._http.get("/health", timeout=self._timeout(min(seconds, QUICK_SECONDS)))
        except (httpx.HTTPError, RuntimeError):  # the latter: it has been closed
            return False
        return response.status_code == 200

    def is_another(self) -> bool:
        """Whether another process than the one that was synced answers now."""
        try:
            self.get("/version", seconds=2)
        except ServerDownError:
            return self.seen_instance not in (None, self.instance)
        except ServerError:
            return False
        return self.instance is None

    def _call(
        self, method: str, path: str, body: Mapping[str, Any] | None, seconds: float
    ) -> httpx.Response:
        try:
            response = self._http.request(
                *(method, path),
                json=body,
                timeout=self._timeout(seconds),
                extensions={"trace": self._keep_socket},
            )
        except httpx.TimeoutException as error:
            raise ServerHungError(f"{self}: {path} gave no answer within {seconds:g} s") from error
        except httpx.HTTPError as error:
            what = str(error) or type(error).__name__
            if "CERTIFICATE_VERIFY_FAILED" in what:
                what += "; give the authority that has signed it (generator.ca_file)"
            raise ServerDownError(f"{self}: {path} cannot be reached: {what}") from error
        except RuntimeError as error:  # httpx2: the client has been closed in the meantime
            raise ServerDownError(f"{self}: {path}: {error}") from error
        found = self.seen_instance = response.headers.get(INSTANCE_HEADER)
        # Before anything else: a restarted server also answers 404 to an adapter that it had.
        if self.instance is not None and found != self.instance and response.status_code != 401:
            raise ServerDownError(
                f"{self}: has been restarted since it was given weights (instance {found}, not "
                f"{self.instance}), so it holds other ones"
            )
        self._require_success(path, response)
        return response

    def _require_success(self, path: str, response: httpx.Response) -> None:
        status = response.status_code
        if status == 200:
            return
        said = _message(response)
        if status in (401, 403):
            raise RequestRefusedError(
                f"{self}: {path} answered {status}: {said}. The bearer token is missing or wrong; "
                "give the one that the server was started with (token_env, token_file)"
            )
        if status < 500 and status not in (408, 429):
            raise RequestRefusedError(f"{self}: {path} answered {status}: {said}")
        raise ServerLostError(f"{self}: {path} answered {status}: {said}")

    def _keep_socket(self, event: str, found: Mapping[str, Any]) -> None:
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            with self._lock:
                self._sockets.add(found["return_value"].get_extra_info("socket"))
            if self._closed:  # while it was connecting
                self.hang_up()

    def _timeout(self, seconds: float) -> httpx.Timeout:
        return httpx.Timeout(seconds, connect=min(self._connect_seconds, seconds))


def _trusting(ca_file: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # what ssl raises for contents is one, too
        raise ConfigError(
            f"generator.ca_file {ca_file!r} is no PEM file with certificates: {error}"
        ) from error


def _message(response: httpx.Response) -> str:
    """What the server says of an error, in whichever of vLLM's forms."""
    try:
        data = response.json()
    except ValueError:
        return response.text.strip()[:300] or "nothing"
    error = data.get("error", data) if isinstance(data, dict) else data
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or error
    return str(error)[:600]
