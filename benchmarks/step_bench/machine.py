"""What the figures depend on: processor, versions, commit, and this machine's rates."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "accelerate", "trl", "grpo-core", "grpo-generator-hf")


def facts(device: str, threads: int) -> dict[str, Any]:
    """Machine, versions and commit."""
    import torch

    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": threads,
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": _git("rev-parse", "HEAD"),
        "changed_files": len((_git("status", "--porcelain") or "").splitlines()),
    }


def rates(device: str, weight_bytes: int) -> dict[str, float]:
    """The best of several timings: what this machine does when it is least disturbed. Seconds are
    those of the clock by which steps are compared.

    Returns:
        ``flops``: of a large matrix product in the precision of training, per second.
        ``bytes``: read per second from a matrix as large as the model's weights.
        ``bytes_uncached``: the same for a buffer that no cache holds.
    """
    import torch

    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    side = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    gemm = _best(lambda: torch.mm(a, b), device)
    return {
        "flops": 2 * side**3 / gemm,
        "bytes": _read_rate(weight_bytes, device, dtype),
        "bytes_uncached": _read_rate(1 << 29, device, dtype),
    }


def _read_rate(size: int, device: str, dtype: Any) -> float:
    import torch

    width = 4096
    rows = max(1, size // (width * dtype.itemsize))
    matrix = torch.ones(rows, width, device=device, dtype=dtype)
    vector = torch.ones(width, device=device, dtype=dtype)
    return float(rows * width * dtype.itemsize / _best(lambda: torch.mv(matrix, vector), device))


def _best(work: Callable[[], Any], device: str, seconds: float = 0.3) -> float:
    import torch

    def now() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    found = float("inf")
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = now()
        work()
        found = min(found, now() - started)
    return found


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
