"""The Piston executor against a server on loopback that speaks API v2 and really runs programs."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from grpo_core.types import Failed, Value
from grpo_sandbox.config import CodeConfig, PistonSettings
from grpo_sandbox.local import LocalExecutor
from grpo_sandbox.piston import PistonExecutor
from grpo_sandbox.program import Limits, Program, SandboxError
from grpo_sandbox.reward import Code

pytestmark = pytest.mark.xdist_group("sandbox")

STATUS = {"wall time": "TO", "cpu time": "TO", "output": "OL", "signal": "SG", "memory": "SG"}


class Server(ThreadingHTTPServer):
    """As Piston's ``api/src/api/v2.js``: the fields, the refusals, the statuses."""

    def __init__(self, sandbox: LocalExecutor) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.sandbox = sandbox
        self.token: str | None = None
        self.answer: object = None
        self.asked: list[dict[str, object]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/api/v2"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        if self.server.token and self.headers["Authorization"] != self.server.token:
            return self.reply(401, {"message": "Unauthorized"})
        if self.server.answer is not None:
            return self.reply(200, self.server.answer)
        if self.path != "/api/v2/execute" or body["language"] != "python":
            return self.reply(400, {"message": f"{body['language']}-* runtime is unknown"})
        files = {file["name"]: file["content"] for file in body["files"]}
        finished = self.server.sandbox.run_blocking(
            Program(
                files=files,
                main=body["files"][0]["name"],
                args=tuple(body["args"]),
                stdin=body["stdin"].encode(),
            ),
            Limits(wall_s=body["run_timeout"] / 1000, cpu_s=body["run_cpu_time"] / 1000),
        )
        run = {
            "stdout": finished.stdout.decode(),
            "stderr": finished.stderr.decode(),
            "code": finished.code,
            "signal": None if finished.code is not None else "SIGKILL",
            "status": STATUS.get(finished.reason) or ("RE" if finished.code else None),
            "message": None,
            "cpu_time": finished.cpu_s * 1000,
            "wall_time": finished.wall_s * 1000,
            "memory": finished.peak_mb * (1 << 20),
        }
        return self.reply(200, {"language": "python", "version": "3.11.0", "run": run})

    def reply(self, status: int, body: object) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(executor: LocalExecutor) -> Iterator[Server]:
    with Server(executor) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def run(server: Server, code: str, *, token: str | None = None, **limits: float):
    piston = PistonExecutor(PistonSettings(url=server.url, token=token, timeout_s=20))
    program = Program(files={"other.py": "x = 4", "main.py": code}, stdin=b"7\n", args=("a",))
    return asyncio.run(piston.run(program, Limits.model_validate(limits)))


def test_a_program_runs_on_the_server(server: Server) -> None:
    finished = run(server, "import sys; print(input(), sys.argv[1:], file=sys.stdout); sys.exit(3)")
    assert (finished.reason, finished.code, finished.stdout) == ("exited", 3, b"7 ['a']\n")
    assert [file["name"] for file in server.asked[0]["files"]] == ["main.py", "other.py"]


def test_limits_are_sent_and_told_apart(server: Server) -> None:
    assert run(server, "import time; time.sleep(60)", wall_s=0.5).reason == "wall time"
    assert run(server, "import os; os.abort()").reason == "signal"
    assert server.asked[0]["run_timeout"] == 500


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"message": "no runtime"}, "without a run"),
        ([1], "answered"),
        ({"run": {"status": "XX", "message": "isolate failed"}}, "failed itself"),
        ({"run": {"stdout": "5\n"}}, "does not say how the run ended"),
    ],
)
def test_a_servers_failure_is_no_verdict(server: Server, answer: object, message: str) -> None:
    server.answer = answer
    with pytest.raises(SandboxError, match=message):
        run(server, "print(1)")


def test_refusals_name_their_reason(server: Server) -> None:
    server.token = "secret"
    with pytest.raises(SandboxError, match=r"refused \(401\).*Unauthorized"):
        run(server, "print(1)", token="wrong")
    assert run(server, "print(1)", token="secret").ok


def test_a_program_that_does_not_compile_is_its_own_fault(server: Server) -> None:
    server.answer = {"compile": {"code": 1, "signal": None, "stdout": "", "stderr": "no"},
                     "run": {"code": 0, "signal": None, "stdout": "5"}}  # fmt: skip
    assert not run(server, "x").ok


def test_nobody_there_is_no_verdict() -> None:
    piston = PistonExecutor(PistonSettings(url="http://127.0.0.1:9/api/v2", timeout_s=5))
    with pytest.raises(SandboxError, match="gave no answer"):
        asyncio.run(piston.run(Program(files={"main.py": ""}), Limits()))


def test_the_reward_works_through_it(server: Server, make_request) -> None:
    config = CodeConfig.model_validate({"executor": {"kind": "piston", "url": server.url}})
    columns = {"tests": [{"call": "f", "args": [1], "expected": 2}, {"stdin": "1", "stdout": ""}]}
    texts = [
        "```python\ndef f(x): return x + 1\n```",
        "```python\ndef f(x): print(2); return 5\n```",
    ]
    outcomes = asyncio.run(Code(config).score(make_request(columns, *texts)))
    assert outcomes == [Value(value=1.0), Value(value=0.0)]


def test_free_test_code_is_refused_not_failed(server: Server, make_request) -> None:
    config = CodeConfig.model_validate({"executor": {"kind": "piston", "url": server.url}})
    columns = {"test": "assert f(1) + f(2) == 5"}
    texts = ["```python\ndef f(x): return x + 1\n```"]
    (outcome,) = asyncio.run(Code(config).score(make_request(columns, *texts)))
    assert isinstance(outcome, Failed)
    assert "cannot run free test code" in outcome.reason
