"""Run by ``test_kill.py``: starts ``grpo`` processes by forking, so that torch is imported once.

Reads one JSON object per line: the words of the command, its folder, environment variables, and
after how many seconds of CPU time to send SIGKILL. Answers each with how the process ended.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

import accelerate  # noqa: F401
import peft  # noqa: F401
import torch
import transformers  # noqa: F401

import grpo_core.run  # noqa: F401
from grpo_core.cli import main

TICK = os.sysconf("SC_CLK_TCK")


def child(words: list[str], folder: str, environment: dict[str, str]) -> None:
    os.chdir(folder)
    os.environ.update(environment)
    log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    sys.argv = ["grpo", *words]
    status = 0
    try:
        main()
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except Exception:
        traceback.print_exc()
        status = 99
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def run(request: dict[str, object]) -> dict[str, float]:
    pid = os.fork()
    if pid == 0:
        try:
            child(request["words"], request["folder"], request["environment"])  # type: ignore[arg-type]
        finally:
            os._exit(99)
    kill_after = request["kill_after"]
    seconds = 0.0
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return {"status": os.waitstatus_to_exitcode(status), "seconds": seconds}
        seconds = cpu_seconds(pid)
        if isinstance(kill_after, float) and seconds >= kill_after:
            os.kill(pid, signal.SIGKILL)
            kill_after = None
        time.sleep(0.002)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
