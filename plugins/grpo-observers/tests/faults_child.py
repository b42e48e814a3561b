"""A run against a server that is not there, or that never answers: ``python -m`` of a test."""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import story

import grpo_observers

name, run_dir = sys.argv[1:]
kind = getattr(grpo_observers, name)
options = {"timeout": 3.0}
if name == "Trackio":
    options["project"] = "faults"
observer = kind(kind.Config(**options))
started = time.monotonic()
story.Story(Path(run_dir)).play(observer)
print(f"took {time.monotonic() - started:.1f}", flush=True)
