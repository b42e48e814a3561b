"""Where a key goes and where not, and what the environment's proxies have to do with it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from grpo_core.endpoint import Endpoint, EndpointError, EndpointSettings
from grpo_core.errors import ConfigError


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # of connections that come at the same time

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[tuple[str, str | None]] = []
        self.redirect: str | None = None
        self.statuses: list[int] = []
        """Of the next answers, before those that succeed."""
        self.retry_after: str | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((self.path, self.headers.get("Authorization")))
        statuses = self.server.statuses
        status = 307 if self.server.redirect else statuses.pop(0) if statuses else 200
        self.send_response(status)
        if self.server.retry_after is not None:
            self.send_header("Retry-After", self.server.retry_after)
        if self.server.redirect:
            self.send_header("Location", self.server.redirect)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    server = Server()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def post(server: Any, body: Any, **options: Any) -> Any:
    endpoint = Endpoint(EndpointSettings(url=server.url + "/", **options), who="reward 'x'")

    async def ask() -> Any:
        async with endpoint.session() as client:
            return await endpoint.post(client, "/a/b", body)

    return asyncio.run(ask())


def test_a_key_is_sent_to_its_server_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "s3cret\n")
    with serving() as server, serving() as other:
        assert post(server, {"a": ["ü"]}, api_key_env="SOME_KEY") == {"a": ["ü"]}
        assert server.seen == [("/a/b", "Bearer s3cret")]
        server.redirect = other.url + "/stolen"
        with pytest.raises(EndpointError, match="status 307"):
            post(server, {}, api_key_env="SOME_KEY")
        assert other.seen == []
    monkeypatch.delenv("SOME_KEY")
    with pytest.raises(ConfigError, match="reward 'x': the environment variable SOME_KEY"):
        post(server, {}, api_key_env="SOME_KEY")


def test_proxies_are_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with serving() as server:
        assert post(server, 1) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"url": "localhost:8000"},
        {"url": "ftp://host"},
        {"url": "http://"},
        {"url": "https://me:word@host"},
        {"url": "http://h", "api_key_env": "sk-proj-abc"},
        {"url": "http://h", "api_key_env": "lowercasekeyabc123"},
        {"url": "http://h", "api_key_env": "A" * 61},
        {"url": "http://h", "request_timeout": 0},
        {"url": "http://h", "max_requests": 0},
    ],
)
def test_settings_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="1 validation error") as caught:
        EndpointSettings(**options)
    assert json.dumps(options.get("api_key_env", "?")) not in str(caught.value)
    assert options.get("api_key_env", "?!") not in str(caught.value)


def test_what_may_pass_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    sleep = asyncio.sleep

    async def short(seconds: float) -> None:
        waited.append(seconds)
        await sleep(0)

    # The pauses are looked at, not waited for.
    monkeypatch.setattr("grpo_core.endpoint.asyncio.sleep", short)
    with serving() as server:
        server.statuses = [429, 503]
        assert post(server, 1) == 1
        assert len(server.seen) == 3
        assert 0.375 <= waited[0] <= 0.5
        assert 0.75 <= waited[1] <= 1.0
        server.statuses, server.retry_after = [429, 429, 429], "7"
        with pytest.raises(EndpointError, match="status 429"):
            post(server, 1)
        assert waited[2:] == [7.0, 7.0]
        server.statuses, server.retry_after = [400], None
        with pytest.raises(EndpointError, match="status 400"):
            post(server, 1)
        server.statuses = [500]
        with pytest.raises(EndpointError, match="status 500"):
            post(server, 1, request_retries=0)
        assert len(waited) == 4

    class Absent:
        url = "http://127.0.0.1:9"

    with pytest.raises(EndpointError, match="ConnectError"):
        post(Absent(), 1)
    assert len(waited) == 6
