"""What reaches a terminal or a log, byte by byte."""

import dataclasses
import io
import os
import pty
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console as Terminal

from grpo_core.builtin.config import ConsoleConfig
from grpo_core.builtin.console import Console
from grpo_core.builtin.console_views import BLOCKS, SPARK_WIDTH, Clock, sparkline
from grpo_core.builtin.history import duration, number
from grpo_core.types import Notice

OURS = re.compile(r"\x1b\[(\??25[lh]|[0-9;]*m|[0-9]*[AK]|2K)|\r\n?")
"""Colours, the cursor's visibility, and moving up to redraw: all that rich needs."""


def plain(script: Any, **options: Any) -> list[str]:
    out = io.StringIO()
    observer = Console(ConsoleConfig(**options), terminal=Terminal(file=out, width=100))
    script.play(observer)
    return out.getvalue().splitlines()


def test_a_log_has_one_line_per_step_and_no_control_codes(script: Any) -> None:
    lines = plain(script)
    steps = [line for line in lines if re.match(r"step \d/6  ", line)]
    assert len(steps) == 6
    assert "reward 0.100  length 11.0  entropy 0.800  kl 0.001  grad 0.500" in steps[1]
    assert "tokens/s 1,234  seconds 1.50  left 0:06" in steps[1]
    assert not any("\x1b" in line for line in lines)


def test_start_evaluations_notices_and_results_are_said(script: Any) -> None:
    (script.run_dir / "notes.txt").write_text("of another observer")
    lines = plain(script)
    text = "\n".join(lines)
    assert "6 steps · rollouts per step 1,280 · epochs 0.250" in text
    assert "held out, greedy, before training:  exact-answer 0.250  think-format 0.250" in lines
    assert "! step 2, no-signal: all rewards were 0.0" in lines
    assert "finished after 6 of 6 steps, 0:00" in lines
    assert any(re.match(r" *exact-answer, greedy +0.250 +0.850", line) for line in lines)
    assert any(re.match(r" *length in tokens, sampled +12.0 +18.0", line) for line in lines)
    assert any(line.split() == ["final", str(script.run_dir / "final")] for line in lines)
    assert any(line.split() == ["there", "too", "notes.txt"] for line in lines)
    assert f"step 6: saved {script.run_dir / 'checkpoints/step-6'}" in lines


def test_notices_of_the_start_are_said(script: Any) -> None:
    notice = Notice(code="off-policy-sampling", text=f"a penalty of 1.2 {script.hostile}")
    out = io.StringIO()
    observer = Console(terminal=Terminal(file=out, width=100))
    observer.grpo_run_start(dataclasses.replace(script.start(), notices=(notice,)))
    assert "! off-policy-sampling: a penalty of 1.2" in out.getvalue()
    assert "\x1b]" not in out.getvalue()


def test_the_same_prompts_stand_side_by_side_before_and_after(script: Any) -> None:
    lines = plain(script, samples=2)
    pairs = [re.fullmatch(r" (\d) \+3=\? +(<\S+>) +(<\S+>) *", line) for line in lines]
    shown = [pair.groups() for pair in pairs if pair]
    assert shown == [(str(i), "<answer>0</answer>", "<answer>6</answer>") for i in range(2)]
    assert not any("+3=?" in line for line in plain(script, samples=0))


def test_metrics_that_are_missing_leave_a_gap_and_nothing_else(script: Any) -> None:
    script.metrics = lambda step: {}
    script.evaluated = lambda step: ()
    lines = plain(script)
    assert sum(line.startswith("step ") and "/6" in line for line in lines) == 6


def test_a_failure_is_told(script: Any) -> None:
    out = io.StringIO()
    observer = Console(terminal=Terminal(file=out, width=100))
    script.play(observer, last=2, end=False)
    observer.grpo_run_end(script.end(status="failed", steps_done=2, error=f"boom {script.hostile}"))
    assert "failed after 2 of 6 steps" in out.getvalue()
    assert r"boom \x1b]0;pwned\x07\x1b[2J" in out.getvalue()


PROGRAM = """
    import importlib.util, sys, pathlib
    spec = importlib.util.spec_from_file_location("conftest_of_builtin", sys.argv[1])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # before
    from grpo_core.builtin.console import Console
    script = module.Script(pathlib.Path(sys.argv[2]))
    script.text = script.notice = script.hostile
    script.names = ("exact-answer", script.hostile.replace("/", ""))
    print("from a reward", file=sys.stderr)
    script.play(Console())
    print("given back")
"""


def in_terminal(tmp_path: Path, *, before: str = "", **environment: str) -> str:
    """Run the scripted run with hostile text in a real pseudo-terminal."""
    program = textwrap.dedent(PROGRAM).replace("# before\n", before)
    master, slave = pty.openpty()
    command = [sys.executable, "-c", program]
    process = subprocess.Popen(
        [*command, str(Path(__file__).with_name("conftest.py")), str(tmp_path)],
        stdout=slave,
        stderr=slave,
        stdin=slave,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "90", **environment},
    )
    os.close(slave)
    received = b""
    while True:
        try:
            received += (chunk := os.read(master, 65536))
        except OSError:  # Linux's way to say that the other side has closed
            break
        if not chunk:
            break
    os.close(master)
    assert process.wait(60) == 0, received.decode(errors="replace")
    return received.decode()


def test_hostile_text_never_steers_a_terminal(tmp_path: Path) -> None:
    received = in_terminal(tmp_path)
    assert "\x1b[?25l" in received  # there was a live display
    assert "[/bold]" in received
    assert r"\x1b]0;pwned" in received
    rest = OURS.sub("", received).replace("\n", "")
    assert [c for c in rest if ord(c) < 32 or 127 <= ord(c) < 160 or c == "\u202e"] == []


def screen(received: str) -> list[str]:
    """What a terminal of endless height shows after these bytes."""
    lines, row = [""], 0
    for part in re.findall(r"\x1b\[[?0-9;]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", received):
        if part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part.endswith("A") and part.startswith("\x1b"):
            row -= int(part[2:-1] or 1)
        elif part == "\x1b[2K":
            lines[row] = ""
        elif part[0] not in "\x1b\r":
            lines[row] += part
    return lines


def test_redrawing_leaves_no_copies_behind(tmp_path: Path) -> None:
    frantic = (
        "import grpo_core.builtin.console_live as live\n"
        "live.SECONDS_PER_FRAME = 0.0001\n"
        "module.Script.hostile = 'harmless'\n"
    )
    shown = screen(in_terminal(tmp_path, before=frantic))
    assert sum(line.startswith("step 6/6 ") for line in shown) == 1
    assert sum(line.startswith("entropy ") for line in shown) == 1
    assert sum("held out, greedy, before training" in line for line in shown) == 1


def test_the_terminal_is_given_back(tmp_path: Path) -> None:
    received = in_terminal(tmp_path)
    assert received.rindex("\x1b[?25h") > received.rindex("\x1b[?25l")
    assert received.rstrip().endswith("given back")


def test_a_terminal_that_cannot_do_it_gets_plain_lines(tmp_path: Path) -> None:
    assert "\x1b[?25l" not in in_terminal(tmp_path, TERM="dumb")


def test_an_encoding_without_our_characters_ends_no_run(tmp_path: Path) -> None:
    received = in_terminal(tmp_path, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert "finished" in received


def test_a_very_long_line_is_cut(script: Any) -> None:
    script.text = "x" * 1_000_000
    lines = plain(script)
    assert max(map(len, lines)) <= 200
    assert len(lines) < 100


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.2134, "0.213"),
        (0.0, "0.000"),
        (1.5, "1.50"),
        (26.43, "26.4"),
        (1820.4, "1,820"),
        (1.2e-6, "1.2e-06"),
        (-0.5, "-0.500"),
        (float("nan"), "-"),
    ],
)
def test_numbers(value: float, said: str) -> None:
    assert number(value) == said


def test_durations() -> None:
    assert [duration(s) for s in (0, 65, 3723, float("nan"), -3)] == [
        "0:00",
        "1:05",
        "1:02:03",
        "-",
        "0:00",
    ]


def test_time_left_leaves_evaluations_out() -> None:
    clock = Clock()
    clock.step(2.0)
    clock.step(4.0)
    assert clock.left(10) == pytest.approx(30.0, abs=0.5)


def test_sparklines_go_from_lowest_to_highest() -> None:
    rising = sparkline([(n, float(n)) for n in range(1000)])
    assert len(rising) == SPARK_WIDTH
    assert rising[0] == BLOCKS[0]
    assert rising[-1] == BLOCKS[-1]
    assert list(rising) == sorted(rising)
    assert sparkline([(0, 1.0)]) == ""
    assert set(sparkline([(n, 1.0) for n in range(9)])) == {BLOCKS[0]}
