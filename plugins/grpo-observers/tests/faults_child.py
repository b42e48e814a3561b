"""A run against a server that is not there, or that never answers: ``python -m`` of a test."""

import sys
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
story.Story(Path(run_dir)).play(observer)
