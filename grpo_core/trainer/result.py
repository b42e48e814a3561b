"""What a run leaves in the process that ran it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult:
    """What came of a run."""

    status: Literal["finished", "interrupted"]
    steps_done: int
    run_dir: Path
    history: Sequence[Mapping[str, float]]
    """The metrics of every step."""
    evaluations: Sequence[Mapping[str, float]]
    """The metrics of every evaluation, with the number of steps done as ``step``."""
    artifacts: Mapping[str, Path]
    """What lies where."""
