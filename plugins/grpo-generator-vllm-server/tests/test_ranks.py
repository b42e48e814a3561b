"""Several trainer processes on one real server, whose weights change while all of them sample."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from grpo_generator_vllm_server.launch import Launched

pytestmark = [pytest.mark.vllm]

SCRIPT = Path(__file__).with_name("two_ranks.py")
CLOSE = 1e-3
"""Nats, as in ``test_in_flight.py``."""
TEMPERATURE = 1.5


@pytest.mark.parametrize("way", ["file", pytest.param("broadcast", marks=pytest.mark.slow)])
def test_two_ranks_sample_ahead_while_weights_change(
    way: str, engine: Launched, model_folder: Path, tmp_path: Path
) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *torchrun, str(SCRIPT), str(tmp_path), engine.plan.url, way],
        env={
            **os.environ,
            "ACCELERATE_USE_CPU": "true",
            "OMP_NUM_THREADS": "1",
            "GRPO_VLLM_TOKEN": engine.plan.token,
        },
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    history = json.loads((tmp_path / "history.json").read_text())
    assert len(history) == 4
    assert max(step["ratio/sampler_mismatch_max"] for step in history) < CLOSE
    assert max(step["sampling/staleness/max"] for step in history) <= 2
    rows = [json.loads(line) for line in (tmp_path / "rollouts.jsonl").read_text().splitlines()]
    # Each prompt of each step once, whoever sampled it, and each of its completions once.
    assert [sum(row["step"] == step for row in rows) for step in range(4)] == [12] * 4
    assert len({json.dumps([row["step"], row["prompt"]]) for row in rows}) == 16
    require_exact(rows, model_folder, tmp_path)
    # Steps after the first were being sampled when the weights changed, if the machine was not
    # faster than its update; what was, says so token by token.
    ahead = [row for row in rows if any(version < row["step"] for *_, version in row["spans"])]
    assert ahead


@torch.no_grad()
def require_exact(rows: list[dict], model_folder: Path, output: Path) -> None:  # type: ignore[type-arg]
    """Each token's log-prob is that under the version that it names."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    versions = {version for row in rows for *_, version in row["spans"]}
    for version in versions:
        model.load_state_dict(torch.load(output / f"weights-{version}.pt"), strict=False)
        for row in rows:
            at, ids = len(row["prompt"]), list(row["prompt"])
            wanted: list[int] = []
            said: list[float] = []
            for token_ids, logprobs, by in row["spans"]:
                ids += token_ids
                if by == version:
                    wanted += range(at, at + len(token_ids))
                    said += logprobs
                at += len(token_ids)
            if not wanted:
                continue
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double()
            logp = (logits / TEMPERATURE).log_softmax(-1)
            own = torch.stack([logp[place - 1, ids[place]] for place in wanted])
            assert float((own - torch.tensor(said).double()).abs().max()) < CLOSE, version
