"""Two trainer processes, with an engine in each or one for both, train what one process trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

SCRIPT = Path(__file__).with_name("two_ranks.py")


def trained(
    processes: int, output: Path, options: dict[str, Any], lora_rank: int, how: str = "even"
) -> Any:
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(processes)]
    command += [str(SCRIPT), str(output), json.dumps(options), str(lora_rank), how]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((output / "found.json").read_text())


@pytest.fixture(scope="module")
def one(engine_options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What one process trains."""
    output = tmp_path_factory.mktemp("one") / "run"
    return trained(1, output, engine_options, 0)["history"]


@pytest.mark.parametrize("lora_rank", [0, 4])
@pytest.mark.parametrize("shared_by", [1, 2])
def test_two_ranks_train_what_one_trains(
    lora_rank: int, shared_by: int, one: Any, engine_options: dict[str, Any], tmp_path: Path
) -> None:
    options = {**engine_options, "tensor_parallel_size": shared_by}
    two = trained(2, tmp_path / "two", options, lora_rank)["history"]
    assert len(two) == 2
    for step in two:
        assert step["ratio/sampler_mismatch_max"] < 1e-4
    # Seeds are per prompt and sample, so both sample the same in the first step; LoRA changes
    # nothing before it. Batches of another size differ in the last bits, and later a token may.
    for name in ("length/mean", "reward/mean"):
        assert two[0][name] == pytest.approx(one[0][name])
    if not lora_rank:
        assert two[0]["optim/grad_norm"] == pytest.approx(one[0]["optim/grad_norm"], rel=1e-3)


def test_ranks_that_share_an_engine_need_not_sample_equally_often(
    engine_options: dict[str, Any], tmp_path: Path
) -> None:
    """Evaluation of 3 prompts, dynamic sampling, and an environment that asks in waves; four ranks,
    each two with an engine of their own."""
    options = {**engine_options, "tensor_parallel_size": 2}
    four = trained(4, tmp_path / "four", options, 0, "uneven")
    one = trained(1, tmp_path / "one", engine_options, 0, "uneven")
    assert one["history"][0]["sampling/rounds"] > 1, "no place was filled again"
    for name in ("length/mean", "reward/mean", "sampling/rounds"):
        assert four["history"][0][name] == pytest.approx(one["history"][0][name])
    assert four["evaluations"][0] == pytest.approx(one["evaluations"][0])
    for step in four["history"]:
        assert step["ratio/sampler_mismatch_max"] < 1e-4
