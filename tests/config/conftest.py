"""A registry of its own, so that these tests depend on no installed plugin."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from pydantic import Field

from grpo_core.config import ResolvedConfig, load_config
from grpo_core.plugins import Discovery, Registration, Registry, Role, Source
from grpo_core.settings import Settings


class Schedule(Settings):
    """Options within options."""

    start: float = 0.0
    kind: Literal["linear", "cosine"] = "linear"


class ClipOptions(Settings):
    """Of the loss 'clip'."""

    clip_low: float = Field(0.2, ge=0)
    clip_high: float = Field(0.28, ge=0)
    kl_coef: float = Field(0.0, ge=0)
    schedule: Schedule | None = None
    steps: tuple[Schedule, ...] = ()
    words: str | tuple[str, ...] = "all"


class PlainOptions(Settings):
    """Of the loss 'plain'."""

    default_advantage: ClassVar[str] = "sign"
    delta: float = 1.0
    needs: ClassVar[frozenset[str]] = frozenset()


class KeenOptions(Settings):
    """Of the loss 'keen', which says for itself what it needs."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"ref_logprobs"})


class FileOptions(Settings):
    """Of the task 'file'."""

    path: str = Field(description="Where the prompts are.")


class LengthOptions(Settings):
    """Of the reward 'length'."""

    target: int = Field(32, ge=1)


class PairsAtLeast(Settings):
    """Of the advantage 'group', which has no options but says what it needs."""

    min_group_size: ClassVar[int] = 2


class GreedyNames(Settings):
    """Of the reward 'greedy', whose option has a name that every block uses."""

    weight: float = 1.0


SOURCE = Source(plugin="tests", distribution="grpo-tests", version="0.1")
OFFERS: list[tuple[Role, str, Any]] = [
    ("task", "file", FileOptions),
    ("task", "digits", None),
    ("generator", "hf", None),
    ("environment", "single-turn", None),
    ("reward", "length", LengthOptions),
    ("reward", "exact-answer", None),
    ("reward", "greedy", GreedyNames),
    ("advantage", "group", PairsAtLeast),
    ("advantage", "sign", None),
    ("loss", "dapo", ClipOptions),
    ("loss", "plain", PlainOptions),
    ("loss", "keen", KeenOptions),
    ("loss", "nowhere", "grpo_no_such_package.config:Model"),
    ("loss", "twice", None),
    ("loss", "twice", None),
    ("reference", "none", None),
    ("reference", "frozen", None),
    ("reference", "adapter-off", None),
    ("saver", "safetensors", None),
    ("saver", "rollouts", None),
    ("observer", "console", None),
    ("observer", "jsonl", None),
    ("observer", "report", None),
    ("observer", "tensorboard", None),
]

MINIMAL = """\
model: {path: some/model}
task: digits
train: {steps: 10}
"""


@pytest.fixture(scope="session")
def registry() -> Registry:
    registrations = tuple(
        Registration(
            role=role, name=name, target=f"tests.{name}:X", config=config, summary="", source=SOURCE
        )
        for role, name, config in OFFERS
    )
    return Registry(
        Discovery(plugins=(SOURCE,), registrations=registrations, broken=(), disabled=())
    )


Load = Callable[..., ResolvedConfig]


@pytest.fixture
def load(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Load YAML texts, written to run.yaml, run2.yaml ... in the current directory.

    The minimal config comes first as plain data, so that a test says only what it is about.
    """
    monkeypatch.chdir(tmp_path)
    # Import paths are looked for in the working directory too, which is put on sys.path.
    monkeypatch.setattr(sys, "path", [*sys.path])

    def load(*texts: str, sets: Sequence[str] = (), minimal: bool = True) -> ResolvedConfig:
        files: list[Any] = []
        if minimal:
            Path("minimal.yaml").write_text(MINIMAL)
            files.append("minimal.yaml")
        for number, text in enumerate(texts, 1):
            file = "run.yaml" if number == 1 else f"run{number}.yaml"
            Path(file).write_text(textwrap.dedent(text))
            files.append(file)
        return load_config(files, sets, registry)

    return load
