import json
from typing import Any

import pytest

from grpo_core.builtin.jsonl import JsonlMetrics, read_metrics


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def records(script: Any) -> list[dict[str, Any]]:
    text = (script.run_dir / "metrics.jsonl").read_text()
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def places(script: Any) -> list[tuple[str, int]]:
    return [(r["event"], r["step"]) for r in records(script)]


WHOLE = [
    *[("evaluation", 0)] * 2,
    ("step", 0),
    ("step", 1),
    ("notice", 1),
    ("step", 2),
    *[("evaluation", 3)] * 2,
    ("step", 3),
    ("step", 4),
    ("step", 5),
    *[("evaluation", 6)] * 2,
]


def test_every_event_is_one_line(script: Any) -> None:
    script.play(JsonlMetrics())
    assert places(script) == WHOLE
    lines = records(script)
    assert lines[1]["label"] == "greedy"
    assert lines[1]["eval/greedy/exact-answer"] == 0.25
    assert lines[3]["reward/mean"] == 0.1
    assert lines[3]["policy_version"] == 2
    assert lines[4]["code"] == "no-signal"
    assert lines[5]["optim/grad_norm"] is None  # NaN, which is no JSON
    assert lines[5]["wall_time"] == pytest.approx(lines[0]["wall_time"], abs=60)


def test_lines_can_be_read_while_the_run_goes_on(script: Any) -> None:
    script.play(JsonlMetrics(), last=2, end=False)
    assert places(script) == WHOLE[:5]


@pytest.mark.parametrize("killed_after", [3, 4, 5])
def test_a_resumed_run_has_every_step_once(script: Any, killed_after: int) -> None:
    script.play(JsonlMetrics(), last=killed_after, end=False)
    with (script.run_dir / "metrics.jsonl").open("a") as handle:
        handle.write('{"event": "step", "step": 5, "rewa')  # torn by the kill
    script.play(JsonlMetrics(), first=3)
    assert places(script) == WHOLE


def test_a_run_that_starts_again_from_nothing(script: Any) -> None:
    script.play(JsonlMetrics(), last=2, end=False)
    script.play(JsonlMetrics())
    assert places(script) == WHOLE


def test_reading_what_is_not_there(script: Any) -> None:
    assert read_metrics(script.run_dir / "metrics.jsonl") == []
