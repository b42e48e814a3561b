"""A small HTTP server with vLLM's routes, whose faults are chosen by the test.

Not a stand-in for sampling: ids and log-probs are made up. What is tested with it is what the
client does with answers, right and wrong ones.
"""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Answer = tuple[int, Any]


class FakeServer:
    """One server on loopback; attributes change what it does from the next request on."""

    def __init__(self, token: str | None = None, tls: ssl.SSLContext | None = None) -> None:
        self.token = token
        self.instance: str | None = "first"
        self.workers = 1
        self.version = "0.32.0"
        self.logprobs_mode = "processed_logprobs"
        self.extension = True
        self.lora_rank = 0
        self.shares_folder = True
        self.shares_memory = True
        self.dtype = "float32"
        self.held: str | None = None
        self.weight_version = "default"
        self.adapters: dict[str, str] = {}
        self.fault: str | None = None
        """What is wrong with completions, see ``_completions``."""
        self.faults_left = 10**9
        self.push_error: str | None = None
        self.stuck_version: str | None = None
        self.slow = 0.0
        self.complete: Callable[[Any], Answer | None] = lambda body: None
        """Asked first, in the thread of the request; an answer of its own goes out as it is."""
        self.dead = False
        self.calls: list[tuple[str, Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                body = json.loads(self.rfile.read(length) or "null")
                if outer.dead:
                    self.close_connection = True
                    return None
                path = self.path.partition("?")[0]
                outer.calls.append((path, body))
                given = self.headers.get("authorization")
                if path != "/health" and outer.token and given != f"Bearer {outer.token}":
                    return self.reply(401, {"error": "Unauthorized"})
                status, found = outer._answer(path, body)
                if outer.dead:
                    self.close_connection = True
                    return None
                return self.reply(status, found)

            do_GET = do_POST = handle_one

            def reply(self, status: int, found: Any) -> None:
                data = found if isinstance(found, bytes) else json.dumps(found).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                if status != 401 and outer.instance is not None:
                    self.send_header("x-grpo-instance", outer.instance)
                with contextlib.suppress(ConnectionError):  # whoever asked may be gone
                    self.end_headers()
                    self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        if tls is not None:
            self._http.socket = tls.wrap_socket(self._http.socket, server_side=True)
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self.dead = True  # connections that are open would otherwise be served on
        self._http.shutdown()
        self._http.server_close()

    def restart(self) -> None:
        """As another process: nothing is held any more."""
        self.instance, self.held, self.weight_version = "second", None, "default"
        self.adapters = {}

    def count(self, path: str) -> int:
        return sum(p == path for p, _ in self.calls)

    def _answer(self, path: str, body: Any) -> Answer:
        if path == "/v1/completions":
            return self._completions(body)
        simple: dict[str, Any] = {
            "/health": {},
            "/version": {"version": self.version},
            "/pause": {"status": "paused"},
            "/resume": {"status": "resumed"},
            "/reset_prefix_cache": {"success": True},
            "/get_world_size": {"world_size": self.workers},
            "/weight_info": {"weight_version": self.weight_version},
        }
        if path in simple:
            return 200, simple[path]
        if path == "/update_weight_version":
            self.weight_version = body["new_version"]
            return 200, {"success": True}
        if path == "/v1/models":
            models = [{"id": "policy", "parent": None, "root": "base"}]
            models += [
                {"id": n, "parent": "policy", "root": root} for n, root in self.adapters.items()
            ]
            return 200, {"data": models}
        if path == "/v1/load_lora_adapter":
            self.adapters[body["lora_name"]] = body["lora_path"]
            return 200, "loaded"
        if path == "/v1/unload_lora_adapter":
            del self.adapters[body["lora_name"]]
            return 200, "unloaded"
        if path == "/collective_rpc":
            return self._rpc(body)
        return 404, {"detail": "Not Found"}

    def _rpc(self, body: Any) -> Answer:
        if not self.extension:
            return 500, {"error": {"message": "no such method"}}
        if body["method"] == "grpo_load":
            if self.push_error:
                return 200, {"results": [{"error": self.push_error, "applied": False}]}
            self.held = self.stuck_version or body["kwargs"]["mark"]
            return 200, {"results": [{"held": self.held}]}
        if body["method"] == "grpo_sees":
            path, text = Path(body["kwargs"]["path"]), body["kwargs"]["text"]
            sees = self.shares_folder and path.read_text() == text
            return 200, {"results": [{"sees": sees}]}
        if body["method"] == "grpo_opens":
            refused = {"error": "ValueError: the trainer's memory cannot be opened"}
            return 200, {"results": [{"opens": True} if self.shares_memory else refused]}
        if body["method"] in ("grpo_expect", "grpo_open"):
            return 200, {"results": [{"ready": True}]}
        if body["method"] == "grpo_apply":
            self.held = body["kwargs"]["mark"]
            return 200, {"results": [{"held": self.held}]}
        facts = {
            "device": "cpu",
            "rank": 0,
            "held": self.held,
            "broken": None,
            "model": "m",
            "dtype": self.dtype,
            "logprobs_mode": self.logprobs_mode,
            "lora_rank": self.lora_rank,
            "max_model_len": 99,
            "vocabulary": 281,
        }
        return 200, {"results": [facts]}

    def _completions(self, body: Any) -> Answer:
        time.sleep(self.slow)
        if (answer := self.complete(body)) is not None:
            return answer
        fault = self.fault if self.faults_left > 0 else None
        if fault is not None:
            self.faults_left -= 1
        choices = [
            {
                "index": i,
                # As sampling does: by what stands before and the seed, not by who is asked.
                "token_ids": [3 + (body["seed"] + i + 31 * sum(body["prompt"])) % 250, 7, 2],
                "prompt_token_ids": body["prompt"],
                "logprobs": {"token_logprobs": [-0.5, -0.25, -0.1]},
                "finish_reason": "stop",
            }
            for i in range(body["n"])
        ]
        last = choices[-1]
        if fault == "5xx":
            return 503, {"error": {"message": "overloaded"}}
        if fault == "garbage":
            return 200, b"<html>a proxy's page</html>"
        if fault == "hang":
            time.sleep(30)
        if fault == "other json":
            return 200, ["what?"]
        if fault == "fewer choices":
            choices.pop()
        if fault == "one index twice":
            last["index"] = 0
        if fault == "nan":
            last["logprobs"]["token_logprobs"][1] = float("nan")
        if fault == "minus infinity":
            last["logprobs"]["token_logprobs"][1] = -9999.0
        if fault == "above zero":
            last["logprobs"]["token_logprobs"][1] = 0.5
        if fault == "no logprobs":
            last["logprobs"] = None
        if fault == "short logprobs":
            last["logprobs"]["token_logprobs"].pop()
        if fault == "out of vocabulary":
            last["token_ids"][1] = 281
        if fault == "negative id":
            last["token_ids"][1] = -1
        if fault == "no tokens":
            last["token_ids"], last["logprobs"]["token_logprobs"] = [], []
        if fault == "past the end":
            last["token_ids"][0] = 2
        if fault == "aborted":
            last["finish_reason"] = "abort"
        if fault == "cut off early":
            last["finish_reason"] = "length"
        if fault == "other prompt":
            last["prompt_token_ids"] = [1, 2]
        return 200, {"choices": choices}
