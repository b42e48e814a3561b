"""Every way to ask without the token, byte by byte: behind a real HTTP server, and a real engine.

The clients of other tests tidy up what they send; here the request line is what is written.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from grpo_generator_vllm_server.launch import ENGINE, Launched

TOKEN = "a-token-that-only-these-tests-know"
RIGHT = f"Authorization: Bearer {TOKEN}"

ODD_PATHS = (
    *("/v1/models", "//v1/models", "/v1//models", "/v1/models/", "/v1/models?a=/health"),
    *("/health/../v1/models", "/health/./../v1/models", "/health/%2e%2e/v1/models"),
    *("/health%2f..%2fv1%2fmodels", "/health/v1/models", "/health/", "//health", "/Health"),
    *("/health;/../v1/models", "/health%00", "/health%20", "/health%3f", "/./health"),
    *("/%76%31/models", "/%2576%2531/models", "/v1/../health/../collective_rpc", "/v1/%6dodels"),
    *("/v1\\models", "/static/../v1/models", "/docs", "/redoc", "/openapi.json", "/metrics", "/"),
)
METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE", "BREW")
NOT_THE_TOKEN: dict[str, tuple[str, ...]] = {
    "none": (),
    "wrong": ("Authorization: Bearer wrong",),
    "empty": ("Authorization:",),
    "no scheme": (f"Authorization: {TOKEN}",),
    "scheme alone": ("Authorization: Bearer",),
    "other case": (f"Authorization: bearer {TOKEN}",),
    "other scheme": (f"Authorization: Basic {TOKEN}",),
    "two spaces": (f"Authorization: Bearer  {TOKEN}",),
    "a part": (RIGHT[:-1],),
    "more": (f"{RIGHT}x",),
    "two in one": (f"{RIGHT}, Bearer {TOKEN}",),
    "twice": (RIGHT, RIGHT),
    "right, then wrong": (RIGHT, "Authorization: Bearer wrong"),
    "wrong, then right": ("Authorization: Bearer wrong", RIGHT),
    "other headers": (
        *(f"X-API-Key: {TOKEN}", f"Proxy-Authorization: Bearer {TOKEN}", f"Cookie: token={TOKEN}"),
        *(f"X-Authorization: Bearer {TOKEN}", "X-Forwarded-Prefix: /health"),
        *("X-Original-URL: /health", "X-Rewrite-URL: /health", "X-HTTP-Method-Override: GET"),
    ),
}
PREFLIGHT = (
    *("Origin: http://evil.example", "Access-Control-Request-Method: POST"),
    "Access-Control-Request-Headers: authorization",
)
UPGRADE = (
    *("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"),
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)


def status(address: tuple[str, int], line: str, headers: tuple[str, ...] = ()) -> int:
    """Of the answer to a request that is sent as it stands; 0 where there is none."""
    sent = [line, "Host: localhost", *headers]
    if not any("Upgrade" in h for h in headers):
        sent += ["Connection: close", "Content-Length: 0"]
    with socket.create_connection(address, timeout=60) as connection:
        connection.sendall(("\r\n".join(sent) + "\r\n\r\n").encode())
        first = connection.makefile("rb").readline().split()
    return int(first[1]) if len(first) > 1 else 0


def every_way(paths: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Requests that no server must answer, however they are written."""
    for path in paths:
        for headers in NOT_THE_TOKEN.values():
            yield f"GET {path} HTTP/1.1", headers
        for method in METHODS:
            yield f"{method} {path} HTTP/1.1", ()
        yield f"GET {path} HTTP/1.0", ()
        yield f"OPTIONS {path} HTTP/1.1", PREFLIGHT
        yield f"GET http://localhost{path} HTTP/1.1", ()
        yield f"GET {path}?token={TOKEN}&api_key={TOKEN} HTTP/1.1", ()
        yield f"GET {path} HTTP/1.1", UPGRADE


def refused(address: tuple[str, int], paths: tuple[str, ...]) -> int:
    """Ask everything; how many were refused, which must be all of them.

    401 is the guard's. 403 is what a refused websocket becomes. 400, and no answer at all, are of
    the HTTP parser, which is asked before the guard is.
    """
    every = list(every_way(paths))
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda one: status(address, *one), every))
    answered = [(one, code) for one, code in zip(every, found, strict=True) if code != 401]
    websockets = [(one, code) for one, code in answered if one[1] == UPGRADE]
    assert {code for _, code in websockets} <= {400, 403}, websockets
    others = [entry for entry in answered if entry not in websockets]
    assert {code for _, code in others} <= {400, 0}, others
    # Malformed by RFC 9112, not by being unauthorised: few, or the test would test nothing.
    assert len(others) < len(every) / 10, others
    return len(every)


GUARDED = """\
import sys
import uvicorn
from grpo_vllm_guard import Guard

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        return
    print(scope["type"], scope.get("path"), flush=True)
    if scope["type"] == "websocket":
        return await send({"type": "websocket.accept"})
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})

uvicorn.run(Guard(app), host="127.0.0.1", port=int(sys.argv[1]), http=sys.argv[2], lifespan="off",
            log_level="critical")
"""


@pytest.fixture(params=["h11", "httptools"])
def guarded(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Any, Path]]:
    """An app that answers everything, behind the guard; what reaches it is in the file."""
    pytest.importorskip("uvicorn", reason="the guard stands behind uvicorn in vLLM")
    pytest.importorskip(request.param, reason="one of uvicorn's two HTTP parsers")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = free.getsockname()
    reached = tmp_path / "reached"
    with reached.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", GUARDED, str(address[1]), request.param],
            env={**os.environ, "PYTHONPATH": str(ENGINE), "GRPO_VLLM_TOKEN": TOKEN},
            stdout=out,
        )
    try:
        wait(address, process)
        yield address, reached
    finally:
        process.kill()
        process.wait()


def wait(address: tuple[str, int], process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        try:
            socket.create_connection(address, timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError("uvicorn does not listen")


def test_nothing_without_the_token_reaches_what_is_guarded(guarded: tuple[Any, Path]) -> None:
    address, reached = guarded
    assert refused(address, ODD_PATHS) > 500
    assert reached.read_text() == ""
    assert status(address, "GET /v1/models HTTP/1.1", (RIGHT,)) == 200
    assert status(address, "GET /health HTTP/1.1") == 200
    assert reached.read_text().splitlines() == ["http /v1/models", "http /health"]


# The app as the server makes it, with what lists nowhere: hidden routes, mounts and websockets.
ROUTES = """\
import json, sys
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

arguments = make_arg_parser(FlexibleArgumentParser()).parse_args(sys.argv[1:])
every = "generate render transcription realtime embed classify score token_embed".split()
app = build_app(arguments, tuple(every))

def walk(routes, before=""):
    for route in routes:
        path = before + getattr(route, "path", "")
        inner = getattr(getattr(route, "original_router", None), "routes", None)
        if inner is not None:
            # FastAPI keeps included routers whole.
            yield from walk(inner, before + getattr(route.include_context, "prefix", ""))
            continue
        kind = type(route).__name__
        yield kind, path, sorted(getattr(route, "methods", None) or ())
        yield from walk(getattr(route, "routes", None) or (), path)

print(json.dumps({
    "routes": list(walk(app.routes)),
    "middleware": [m.cls.__name__ for m in app.user_middleware],
}))
"""


@pytest.fixture(scope="session")
def table(engine: Launched, engine_python: str) -> dict[str, Any]:
    done = subprocess.run(
        [engine_python, "-c", ROUTES, *engine.plan.arguments()],
        env=engine.plan.environment(engine_python, "table"),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture
def address(engine: Launched) -> tuple[str, int]:
    parts = urlsplit(engine.plan.url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


@pytest.mark.vllm
def test_the_guard_stands_before_all_else(table: dict[str, Any]) -> None:
    # Before CORS too, which answers preflights by itself.
    assert table["middleware"][0] == "Guard"
    assert "CORSMiddleware" in table["middleware"]


@pytest.mark.vllm
def test_no_route_of_the_engine_answers_without_the_token(
    table: dict[str, Any], address: tuple[str, int]
) -> None:
    known = {path for _, path, _ in table["routes"]}
    assert {"/collective_rpc", "/pause", "/update_weights", "/v1/load_lora_adapter"} <= known
    assert {"/invocations", "/tokenize", "/metrics", "/v1/realtime", "/openapi.json"} <= known
    asked: list[tuple[str, tuple[str, ...]]] = []
    upgrades: list[tuple[str, tuple[str, ...]]] = []
    for _, path, methods in table["routes"]:
        if path == "/health":
            continue
        filled = "/".join("x" if part.startswith("{") else part for part in path.split("/"))
        for method in sorted({*methods, "GET", "HEAD", "OPTIONS", "POST"}):
            for written in (filled, f"{filled}/", f"/{filled}"):
                for headers in ((), NOT_THE_TOKEN["wrong"]):
                    asked.append((f"{method} {written} HTTP/1.1", headers))
        upgrades.append((f"GET {filled} HTTP/1.1", UPGRADE))
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda one: status(address, *one), asked))
        closed = list(pool.map(lambda one: status(address, *one), upgrades))
    assert len(asked) > 1000
    assert not [one for one, code in zip(asked, found, strict=True) if code != 401]
    assert not [one for one, code in zip(upgrades, closed, strict=True) if code != 403]
    assert status(address, "GET /health HTTP/1.1") == 200
    assert status(address, "GET /v1/models HTTP/1.1", (RIGHT,)) == 200


@pytest.mark.vllm
def test_no_odd_request_reaches_the_engine(address: tuple[str, int]) -> None:
    assert refused(address, ODD_PATHS) > 500
