"""One side in a process of its own: ``python -m step_bench.worker ours FOLDER``.

Takes one line on standard input per request (``go``, or a path to compare gradients with), answers
one line of JSON on what was standard output. Whatever libraries print goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, TextIO

from step_bench.material import load
from step_bench.workloads import workload_from


def main(side: str, folder: Path) -> None:
    """Answer requests until there are no more."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    import torch

    spec = json.loads((folder / "spec.json").read_text("utf-8"))
    torch.set_num_threads(spec["threads"])
    arguments = (workload_from(spec["workload"]), load(folder), spec["seed"])
    if side == "ours":
        _ours(arguments, answers)
    else:
        _theirs(arguments, answers)


def _ours(arguments: Any, answers: TextIO) -> None:
    from step_bench.ours import Ours

    side = Ours(*arguments)
    steps = side.steps()
    _answer(answers, next(steps))
    for line in sys.stdin:
        request = line.strip()
        _answer(answers, next(steps) if request == "go" else side.compare(Path(request)))


def _theirs(arguments: Any, answers: TextIO) -> None:
    from step_bench.trl_side import Theirs

    def hand_over(figures: dict[str, Any]) -> None:
        _answer(answers, figures)
        if not sys.stdin.readline():
            # The other end is gone, or done.
            raise SystemExit

    Theirs(*arguments).train(hand_over)


def _answer(answers: TextIO, data: dict[str, Any]) -> None:
    answers.write(json.dumps(data) + "\n")
    answers.flush()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
