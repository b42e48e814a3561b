"""Programs on a Piston server, by its HTTP API v2 (github.com/engineer-man/piston, docs/api-v2)."""

from __future__ import annotations

import asyncio
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from grpo_core.errors import ConfigError
from grpo_sandbox.config import PistonSettings
from grpo_sandbox.program import Finished, Limits, Program, Reason, SandboxError

LIMITS: dict[str, Reason] = {"TO": "wall time", "OL": "output", "EL": "output"}
"""``status`` of a run that was ended: timeout, stdout and stderr too long."""

MOST_REPLY = 64 << 20


class PistonExecutor:
    """Each run is one ``POST {url}/execute``; the server isolates and limits.

    Of the limits, ``cpu_s``, ``wall_s`` and ``memory_mb`` are sent; the server refuses those above
    its own. Processes, files and output are limited by its configuration alone.
    """

    def __init__(self, settings: PistonSettings, *, concurrency: int | None = None) -> None:
        self._settings = settings
        workers = concurrency or os.cpu_count() or 1
        self._threads = ThreadPoolExecutor(workers, "piston")

    def describe(self) -> str:
        return f"piston ({self._settings.url})"

    async def run(self, program: Program, limits: Limits) -> Finished:
        """Raises ``SandboxError`` when the server cannot be asked, refuses, or fails."""
        return await asyncio.wrap_future(self._threads.submit(self.run_blocking, program, limits))

    def run_blocking(self, program: Program, limits: Limits) -> Finished:
        """The same for callers without an event loop."""
        started = time.monotonic()
        reply = self._post(self._request(program, limits), limits)
        wall_s = time.monotonic() - started
        run = reply.get("run")
        if not isinstance(run, Mapping):
            raise SandboxError(f"{self.describe()} answered without a run: {_short(reply)}")
        compiled = reply.get("compile")
        if isinstance(compiled, Mapping) and compiled.get("code") != 0:
            run = compiled  # a program that does not compile is its own fault
        return self._finished(run, wall_s)

    def _request(self, program: Program, limits: Limits) -> dict[str, Any]:
        try:
            stdin = program.stdin.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError("Piston takes stdin as text in UTF-8 only") from error
        rest = [name for name in program.files if name != program.main]
        return {
            "language": program.language,
            "version": self._settings.version,
            # The first one is run.
            "files": [
                {"name": name, "content": program.files[name], "encoding": "utf8"}
                for name in (program.main, *rest)
            ],
            "stdin": stdin,
            "args": list(program.args),
            "run_timeout": round(limits.wall_s * 1000),
            "run_cpu_time": round(limits.cpu_s * 1000),
            "compile_timeout": round(limits.wall_s * 1000),
            "run_memory_limit": limits.memory_mb << 20,
        }

    def _post(self, body: dict[str, Any], limits: Limits) -> dict[str, Any]:
        request = urllib.request.Request(
            self._settings.url.rstrip("/") + "/execute",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        if self._settings.token:
            request.add_header("Authorization", self._settings.token)
        patience = limits.wall_s * 2 + self._settings.timeout_s
        try:
            with urllib.request.urlopen(request, timeout=patience) as response:
                text = response.read(MOST_REPLY)
            reply = json.loads(text)
        except urllib.error.HTTPError as error:
            said = error.read(2000).decode("utf-8", "replace")
            raise SandboxError(f"{self.describe()} refused ({error.code}): {said}") from error
        except (OSError, ValueError) as error:
            raise SandboxError(f"{self.describe()} gave no answer: {error}") from error
        if not isinstance(reply, dict):
            raise SandboxError(f"{self.describe()} answered {_short(reply)}")
        return reply

    def _finished(self, run: Mapping[str, Any], wall_s: float) -> Finished:
        status, signal, code = run.get("status"), run.get("signal"), run.get("code")
        if status == "XX":
            raise SandboxError(f"{self.describe()} failed itself: {_short(run)}")
        reason: Reason = LIMITS.get(str(status), "signal" if signal else "exited")
        if reason == "exited" and not isinstance(code, int):
            raise SandboxError(f"{self.describe()} does not say how the run ended: {_short(run)}")
        return Finished(
            reason=reason,
            code=code if reason == "exited" else None,
            signal=_number(signal),
            stdout=str(run.get("stdout", "")).encode("utf-8", "surrogatepass"),
            stderr=str(run.get("stderr", "")).encode("utf-8", "surrogatepass"),
            cpu_s=float(run.get("cpu_time") or 0) / 1000,
            wall_s=float(run.get("wall_time") or wall_s * 1000) / 1000,
            peak_mb=float(run.get("memory") or 0) / (1 << 20),
        )


def _number(name: object) -> int | None:
    import signal

    return signal.Signals[str(name)].value if str(name) in signal.Signals.__members__ else None


def _short(value: object) -> str:
    return repr(value)[:300]
