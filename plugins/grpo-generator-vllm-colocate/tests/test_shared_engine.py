"""Two ranks that hold one engine together: whatever one of them does, none hangs, and both say it.

Two launches of ``shared_engine.py``: one in which an engine's part fails for good, and then one for
everything else, which would not start beside what the first has left behind.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

SCRIPT = Path(__file__).with_name("shared_engine.py")
SHARED_MEMORY = Path("/dev/shm")

Scenario = Callable[[str], list[Any]]
"""What each rank found; JSON, so that tuples are lists and keys are texts."""


def launched(folder: Path, options: dict[str, Any], *scenarios: str) -> Any:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(SCRIPT), str(folder), json.dumps(options), *scenarios]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def killed(
    engine_options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Any, float]]:
    """A launch in which one part fails within a step, and how many seconds it took."""
    before, began = set(SHARED_MEMORY.iterdir()), time.monotonic()
    done = launched(tmp_path_factory.mktemp("killed"), engine_options, "dies_inside")
    took = time.monotonic() - began
    yield done, took
    for left in set(SHARED_MEMORY.iterdir()) - before:
        if left.name.endswith(("cpushm_0", "cpushm_1")):
            left.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def scenario(
    killed: object, engine_options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Scenario:
    names = ("uneven", "rounds", "abandoned", "broken_tool", "refused", "wrong_weights")
    names += ("other_tokens", "other_weights", "comes_late", "again")
    folder = tmp_path_factory.mktemp("shared")
    # On a CPU vLLM takes the calls for sleep and gives nothing up.
    done = launched(folder, {**engine_options, "sleep": True}, *names)

    def found(name: str) -> list[Any]:
        files = [folder / f"{name}.{rank}.json" for rank in (0, 1)]
        assert all(file.exists() for file in files), done.stderr[-4000:]
        return [json.loads(file.read_text()) for file in files]

    return found


@pytest.fixture
def expected(scenario: Scenario) -> dict[str, Any]:
    """What each prompt's completions are, whoever asks for them, and beside whatever."""
    one, other = scenario("uneven")[1]
    assert one == {"3": other["3"]}
    assert len(other) == 4
    found: dict[str, Any] = other
    return found


def own(expected: dict[str, Any], rank: int) -> dict[str, Any]:
    return {str(rank): expected[str(rank)]}


def test_ranks_ask_for_as_many_prompts_as_they_like(scenario, expected) -> None:
    first, _ = scenario("uneven")
    assert first == [{key: expected[key] for key in "012"}, {}]


def test_ranks_ask_as_often_as_they_like_in_a_round(scenario, expected) -> None:
    first, second = scenario("rounds")
    assert first == [{k: expected[k] for k in keys} for keys in ("0", "12", "3")]
    assert second == [{"2": expected["2"]}, {"0": expected["0"]}]


def test_a_rank_may_stop_early_or_never_begin(scenario, expected) -> None:
    assert scenario("abandoned") == [own(expected, 0), own(expected, 1)]


def test_a_failure_beside_the_sampling_ends_that_of_the_others(scenario, expected) -> None:
    for rank, (said, again, after) in enumerate(scenario("broken_tool")):
        kind, text, seconds = said
        assert (kind == "ValueError") == (rank == 1)
        assert "the tool broke" in text
        assert seconds < 15, "not at once, but after a time limit"
        assert again[0] == "PeerError"
        assert again[1].startswith("the ranks of this engine have stopped sampling")
        assert after == own(expected, rank)
    assert "rank 1 failed: ValueError" in scenario("broken_tool")[0][0][1]


def test_a_refused_request_is_everybodys(scenario, expected) -> None:
    for rank, (said, after) in enumerate(scenario("refused")):
        assert said[:2] == [
            "RequestRefusedError",
            "of rank 1: vLLM does not take a request: Token id 5000 is out of vocabulary",
        ]
        assert after == own(expected, rank)


def test_a_sync_is_everybodys_or_nobodys(scenario, expected) -> None:
    for rank, both in enumerate(scenario("wrong_weights")):
        for part, (said, then, kept, after) in zip(
            ("nothing was applied", "holds parts of two"), both, strict=True
        ):
            assert said[0] == ("SyncError" if rank else "PeerError")
            assert part in said[1]
            assert said[2] < 60
            assert then[0] == "SyncError"
            assert "has nothing to sample from" in then[1]
            # Compared before anything is applied, both keep theirs; else both make another.
            assert kept == (part == "nothing was applied")
            assert after == own(expected, rank)


def test_parts_that_draw_different_tokens_are_found_out(scenario, expected) -> None:
    for rank, (said, kept, after) in enumerate(scenario("other_tokens")):
        assert said[0] == "EngineError"
        assert "have drawn different tokens" in said[1]
        assert not kept
        assert after == own(expected, rank)


def test_parts_with_different_weights_do_not_sample(scenario) -> None:
    for said in scenario("other_weights"):
        assert said[:2] == [
            "SyncError",
            "ranks [0, 1] sample with one engine and hold policy versions [0, 1]",
        ]


def test_a_rank_that_does_not_come_is_given_up_in_time(scenario, expected) -> None:
    (first, after_0), (second, after_1) = scenario("comes_late")
    assert first[0] == second[0] == "PeerError"
    assert "rank 0 has waited 20 s (generator.peer_timeout) for rank 1" in first[1]
    assert 20 <= first[2] < 60
    assert "rank 0 failed" in second[1], "it would have waited for the other inside vLLM"
    assert [after_0, after_1] == [own(expected, 0), own(expected, 1)]


def test_closed_and_asked_again_in_one_process(scenario, expected) -> None:
    for rank, both in enumerate(scenario("again")):
        for groups, threads, total, said, after in both:
            assert groups == 1, "process groups besides the default one are left"
            assert threads == []
            assert total == 2
            assert "it has been closed" in said[1]
            assert after == own(expected, rank)


def test_a_failure_inside_vllm_ends_the_process_that_waits_there(killed) -> None:
    done, took = killed
    assert done.returncode != 0
    assert took < 300
    assert "rank 1 failed: EngineError: the vLLM engine of this process failed" in done.stderr
    assert "RuntimeError: CUDA out of memory" in done.stderr
    assert "has waited for it for 2 s within vLLM and cannot go on" in done.stderr
