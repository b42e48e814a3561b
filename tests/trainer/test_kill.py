"""Real ``grpo train`` processes, killed by SIGKILL anywhere and resumed, end as if never killed."""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from grpo_core.builtin.jsonl import read_metrics

logger = logging.getLogger(__name__)

HERE = Path(__file__).parent
KILLED = -signal.SIGKILL
STEPS = 4

REWARDS = """\
def varied(completion_ids, **_):
    return [float(len(ids) > 3 and sum(ids) % 7 > 3) for ids in completion_ids]
"""
BASE: dict[str, Any] = {
    "task": "arithmetic",
    "train": {"steps": STEPS, "prompts_per_step": 2, "group_size": 3},
    "optimizer": {"learning_rate": 1e-3},
    "sampling": {"max_tokens": 8},
    "rewards": ["rewards.py:varied"],
    "checkpoints": {"every_steps": 1, "every_minutes": 0, "keep_last": 1},
    "observers": ["jsonl", "sabotage.py:Sabotage"],
    "output": "run",
}
WITH_KL = {"name": "dapo", "kl_coef": 0.1}
VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"model": {"lora": {"r": 4}}, "loss": WITH_KL, "reference": "adapter-off"},
    "ema": {
        "loss": WITH_KL,
        "reference": {"name": "ema", "every": 2},
        "train": {"minibatches_per_step": 2},
    },
    "replay": {"train": {"dynamic_sampling": {"max_rounds": 2, "replay_groups": 8}}},
    "lora, ema, replay": {
        "model": {"lora": {"r": 4}},
        "loss": WITH_KL,
        "reference": {"name": "ema", "every": 2},
        "train": {
            "minibatches_per_step": 2,
            "passes_per_step": 2,
            "dynamic_sampling": {"max_rounds": 2, "replay_groups": 8},
        },
        "evaluation": {"every": 2, "prompts": 2},
    },
}

Start = Callable[..., dict[str, float]]


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    """Run a command in a folder; says how it ended and its seconds of CPU time."""
    server = subprocess.Popen(
        [sys.executable, str(HERE / "forked_runs.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    assert server.stdin is not None
    assert server.stdout is not None
    requests, answers = server.stdin, server.stdout
    assert answers.readline() == "ready\n"

    def ask(folder: Path, *words: str, kill_after: float | None = None, **environment: str) -> Any:
        request = {
            "words": ["train", "run.yaml", *words],
            "folder": str(folder),
            "environment": environment,
            "kill_after": kill_after,
        }
        requests.write(json.dumps(request) + "\n")
        requests.flush()
        return json.loads(answers.readline())

    yield ask
    requests.close()
    server.wait(timeout=30)


@pytest.fixture
def prepare(tmp_path: Path, tiny_model: Path) -> Callable[[str, str], Path]:
    def make(name: str, variant: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        config = json.loads(json.dumps({"model": {"path": str(tiny_model)}, **BASE}))
        for key, value in VARIANTS[variant].items():
            old = config.get(key)
            config[key] = {**old, **value} if isinstance(old, dict) else value
        (folder / "run.yaml").write_text(yaml.safe_dump(config))
        (folder / "rewards.py").write_text(REWARDS)
        shutil.copy(HERE / "sabotage.py", folder)
        return folder

    return make


def outcome(folder: Path) -> dict[str, Any]:
    """Metrics without times, rollouts, and the bytes of the saved model and the last checkpoint."""
    run = folder / "run"
    records = read_metrics(run / "metrics.jsonl")
    for record in records:
        for name in [n for n in record if n.startswith(("time/", "wall_time"))]:
            del record[name]
    files = sorted((run / "rollouts").iterdir())
    return {
        "records": records,
        "files": [path.name for path in files],
        "rollouts": [pq.read_table(path).to_pylist() for path in files],
        "final": [p.read_bytes() for p in sorted((run / "final").glob("*.safetensors"))],
        "state": (run / f"checkpoints/step-{STEPS:06d}/state.safetensors").read_bytes(),
        "left over": [p.name for p in run.rglob("*") if p.name.endswith((".tmp", ".old"))],
    }


def assert_equal(found: dict[str, Any], expected: dict[str, Any], why: str) -> None:
    for name, value in expected.items():
        assert found[name] == value, f"{name} differ after {why}"


def finish(start: Start, folder: Path) -> None:
    done = start(folder, "--resume")
    assert done["status"] == 0, (folder / "log.txt").read_text()[-3000:]


def uninterrupted(start: Start, folder: Path) -> tuple[dict[str, Any], list[str], float]:
    done = start(folder, SABOTAGE="count")
    assert done["status"] == 0, (folder / "log.txt").read_text()[-3000:]
    calls = (folder / "run" / "calls.txt").read_text().split()
    return outcome(folder), calls, done["seconds"]


def test_killed_while_writing_sampling_and_updating(
    start: Start, prepare: Callable[[str, str], Path]
) -> None:
    expected, calls, _ = uninterrupted(start, prepare("whole", "ema"))
    folder = prepare("killed", "ema")
    write = calls.index("write")
    # One process after the other: with the first checkpoint half written, with one that is whole
    # but for its name, and before the second of a step's two updates.
    rename = calls.index("rename", write)
    update = calls.index("step", calls.index("step") + 1)
    for position in (write, rename, update):
        killed = start(folder, "--resume", SABOTAGE=str(position + 1))
        assert killed["status"] == KILLED, (folder / "log.txt").read_text()[-3000:]
    finish(start, folder)
    assert_equal(outcome(folder), expected, "three kills")


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_at_random_moments(
    start: Start, prepare: Callable[[str, str], Path], variant: str
) -> None:
    expected, _, seconds = uninterrupted(start, prepare("whole", variant))
    chance = random.Random(variant)
    kills = 0
    for trial in range(int(os.environ.get("KILL_TRIALS", "4"))):
        folder = prepare(f"killed-{trial}", variant)
        # The first while there is certainly something left to do, on any machine.
        shares = [chance.uniform(0.1, 0.6), chance.uniform(0.2, 1.0), chance.uniform(0.2, 1.0)]
        moments = [share * seconds for share in shares]
        for moment in moments:
            kills += start(folder, "--resume", kill_after=moment)["status"] == KILLED
        finish(start, folder)
        assert_equal(outcome(folder), expected, f"kills after {moments} s of CPU time")
    logger.info("%d kills in %d trials of %r", kills, trial + 1, variant)
    assert kills > trial


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["full", "lora, ema, replay"])
def test_killed_at_every_kind_of_call(
    start: Start, prepare: Callable[[str, str], Path], variant: str
) -> None:
    expected, calls, _ = uninterrupted(start, prepare("whole", variant))
    chance = random.Random(variant)
    kills = 0
    every = int(os.environ.get("KILL_EVERY", "7"))
    for position in range(chance.randrange(every), len(calls), every):
        folder = prepare(f"killed-{position}", variant)
        killed = start(folder, SABOTAGE=str(position + 1))
        assert killed["status"] == KILLED
        # Often before the first new step: whoever is killed while resuming loses nothing either.
        killed = start(folder, "--resume", SABOTAGE=str(chance.randrange(1, 40)))
        assert killed["status"] in (KILLED, 0)
        finish(start, folder)
        assert_equal(outcome(folder), expected, f"a kill before call {position}, {calls[position]}")
        shutil.rmtree(folder)
        kills += 1 + (killed["status"] == KILLED)
    logger.info("%d kills at %d calls of %r", kills, len(calls), variant)
