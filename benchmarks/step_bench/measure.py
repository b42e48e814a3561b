"""One workload: both sides in processes of their own, a step each in turn."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from step_bench import floor, machine
from step_bench.material import Kind, Material, make
from step_bench.workloads import Workload

HERE = Path(__file__).parents[1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How to measure."""

    repeats: int
    seed: int
    threads: int
    trl_python: str
    half: bool = True
    """Also steps in which every second group has equal rewards."""
    sides: tuple[str, ...] = ("trl", "ours")


class Rates:
    """The machine's rates, measured after every step: the best of a run is what it can do."""

    def __init__(self, device: str, weight_bytes: int, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._arguments = (device, weight_bytes)
        self.best: dict[str, float] = {}

    def measure(self) -> None:
        """Once more, keeping the best of each."""
        found = machine.rates(*self._arguments)
        self.best = {name: max(rate, self.best.get(name, 0.0)) for name, rate in found.items()}


class Side:
    """A worker process."""

    def __init__(self, name: str, folder: Path, python: str, threads: int, device: str) -> None:
        self.name = name
        environment = os.environ | {
            "OMP_NUM_THREADS": str(threads),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": str(HERE),
        }
        if device == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        self._log_path = folder / f"{name}.log"
        self._log = self._log_path.open("w", encoding="utf-8")
        self._process = subprocess.Popen(
            [python, "-m", "step_bench.worker", name, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
            cwd=HERE,
        )

    def ask(self, request: str) -> dict[str, Any]:
        """Send a line, wait for the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(request + "\n")
        self._process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """The next answer; ``RuntimeError`` with the end of the log when there is none."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            tail = self._log_path.read_text("utf-8", errors="replace")[-3000:]
            raise RuntimeError(f"the side {self.name!r} ended early; the end of its log:\n{tail}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Side:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        if error is not None:
            self._process.terminate()
        self._process.wait()
        self._log.close()


def measure(workload: Workload, options: Options, say: Callable[[str], None]) -> dict[str, Any]:
    """All figures of one workload, raw and summed up."""
    kinds: list[Kind] = ["warm-up"]
    for _ in range(options.repeats):
        kinds += ["signal", "half"] if options.half else ["signal"]
    with tempfile.TemporaryDirectory(prefix="step_bench_") as name:
        folder = Path(name)
        material = make(folder, workload, kinds, options.seed)
        spec = {
            "workload": workload.as_data(),
            "seed": options.seed,
            "threads": options.threads,
        }
        (folder / "spec.json").write_text(json.dumps(spec), "utf-8")
        size = floor.sizes(material.model, workload.device)
        rates = Rates(workload.device, size.weight_bytes, options.threads)
        steps, equality, layouts = _alternate(workload, options, material, kinds, say, rates)
        rate = rates.best
        for step, rows in zip(steps, material.steps, strict=True):
            step["floor"] = floor.floor(size, rows, _prompt_tokens(material, rows), rate)
    return {
        "workload": workload.as_data(),
        "options": {"repeats": options.repeats, "seed": options.seed, "half": options.half},
        "machine": machine.facts(workload.device, options.threads),
        "trl_version": _trl_version(options.trl_python),
        "rates": rate,
        "layouts": layouts,
        "equality": equality,
        "steps": steps,
        "summary": summary(steps, workload.device),
    }


def _alternate(
    workload: Workload,
    options: Options,
    material: Material,
    kinds: list[Kind],
    say: Callable[[str], None],
    rates: Rates,
) -> tuple[list[dict[str, Any]], dict[str, Any] | None, dict[str, str]]:
    python = {"trl": options.trl_python, "ours": sys.executable}
    sides = {
        name: Side(name, material.folder, python[name], options.threads, workload.device)
        for name in options.sides
    }
    equality, steps = None, []
    try:
        layouts = {name: side.answer()["layout"] for name, side in sides.items()}
        for number, kind in enumerate(kinds):
            step: dict[str, Any] = {"kind": kind}
            for name, side in sides.items():
                if name == "ours" and number == 0 and "trl" in sides:
                    # Before our first step, while both have the same weights.
                    equality = side.ask(str(material.folder / "first_step.pt"))
                    say(f"  gradients differ by {equality['relative_difference']:.1e}")
                step[name] = side.ask("go")
            rates.measure()
            steps.append(step)
            say(f"  {kind:7} {_line(step, workload.device)}")
            _same_work(step)
    finally:
        for side in sides.values():
            side.__exit__(*sys.exc_info())
    return steps, equality, layouts


def _same_work(step: dict[str, Any]) -> None:
    for count in ("completion_tokens", "prompt_tokens"):
        found = {side: step[side][count] for side in ("trl", "ours") if side in step}
        # Both count a prompt once per completion.
        if len(set(found.values())) > 1:
            raise RuntimeError(f"the sides did different work: {count} {found}")


def _line(step: dict[str, Any], device: str) -> str:
    unit = clock(device)
    parts = []
    for side in ("trl", "ours"):
        if side in step:
            phases = ", ".join(
                f"{n} {p[unit]:.2f}" for n, p in step[side]["phases"].items() if p[unit] > 0
            )
            extra = step[side]["extra_bytes"]
            memory = "" if extra is None else f", +{extra / 1e6:.0f} MB"
            parts.append(f"{side} {step[side][unit]:.2f} s ({phases}{memory})")
    if len(parts) == 2:
        parts.append(f"ratio {step['trl'][unit] / step['ours'][unit]:.2f}")
    return " | ".join(parts)


def clock(device: str) -> str:
    """Which time is compared: that of the CPU, or, on a GPU, that of the wall."""
    return "cpu" if device == "cpu" else "wall"


def summary(steps: list[dict[str, Any]], device: str) -> dict[str, Any]:
    """Medians over the repeats; ratios are medians of the ratios of paired steps."""
    unit = clock(device)
    found: dict[str, Any] = {}
    for kind in ("signal", "half"):
        of_kind = [s for s in steps if s["kind"] == kind]
        if not of_kind:
            continue
        found[kind] = {
            side: _side_summary([s[side] for s in of_kind], unit)
            for side in ("trl", "ours")
            if side in of_kind[0]
        }
        found[kind]["floor"] = {
            part: statistics.median(s["floor"][part] for s in of_kind)
            for part in of_kind[0]["floor"]
        }
        if "trl" in of_kind[0] and "ours" in of_kind[0]:
            ratios = [s["trl"][unit] / s["ours"][unit] for s in of_kind]
            found[kind]["ratio"] = statistics.median(ratios)
            found[kind]["ratios"] = ratios
            extra = [(s["trl"]["extra_bytes"], s["ours"]["extra_bytes"]) for s in of_kind]
            if all(ours for _, ours in extra):
                found[kind]["memory_ratio"] = statistics.median(t / o for t, o in extra)
    return found


def _side_summary(steps: list[dict[str, Any]], unit: str) -> dict[str, Any]:
    def middle(values: list[Any]) -> float | None:
        return None if None in values else statistics.median(values)

    return {
        "cpu": middle([s["cpu"] for s in steps]),
        "wall": middle([s["wall"] for s in steps]),
        "phases": {
            name: middle([s["phases"][name][unit] for s in steps]) for name in steps[0]["phases"]
        },
        "extra_bytes": middle([s["extra_bytes"] for s in steps]),
        "tokens_per_second": middle([s["completion_tokens"] / s[unit] for s in steps]),
    }


def _prompt_tokens(material: Material, rows: list[dict[str, Any]]) -> list[int]:
    from transformers import AutoTokenizer

    from grpo_core.policy.text import PromptEncoder
    from step_bench.ours import prompt_of

    encoder = PromptEncoder(AutoTokenizer.from_pretrained(material.model), {})
    return [len(encoder.encode(prompt_of(row))) for row in rows]


def _trl_version(python: str) -> str | None:
    code = "from importlib.metadata import version; print(version('trl'))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def stamp() -> str:
    """Date and time, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
