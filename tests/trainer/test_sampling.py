"""How a run samples: what the generator hears of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from grpo_core import EvaluationSettings, Run, train
from grpo_core.errors import PluginError
from grpo_core.testing import ScriptedConfig, ScriptedGenerator
from grpo_core.types import GeneratedGroup, GenerateRequest

MakeRun = Callable[..., Run]


class Together(ScriptedGenerator):
    """Ranks of it need each other; notes what it is asked, and how each round ends."""

    def __init__(self) -> None:
        super().__init__(ScriptedConfig(completions=("yes", "no")))
        self.heard: list[str] = []

    @contextmanager
    def together(self) -> Iterator[None]:
        self.heard.append("begins")
        try:
            yield
        except BaseException as error:
            self.heard.append(f"fails: {error}")
            raise
        self.heard.append("ends")

    def generate(self, request: GenerateRequest) -> Iterator[GeneratedGroup]:
        self.heard.append(f"{len(request.prompt_ids_P)} prompts")
        return super().generate(request)


def test_a_generator_whose_ranks_need_each_other_hears_of_every_round(
    make_run: MakeRun, list_task: Any
) -> None:
    """Also of one in which this rank has no prompts: without it others would wait for ever."""
    generator = Together()
    task = list_task(["a?", "b?"], ["c?"])
    run = make_run(generator=generator, task=task, evaluation=EvaluationSettings(prompts=1))
    train(run)
    rounds = ["begins", "1 prompts", "ends"] * 2
    step = ["begins", "2 prompts", "ends"]
    assert generator.heard == [*rounds, *step, *step, *rounds]
    generator.heard.clear()
    run.sample_round(0, 1, [])
    assert generator.heard == ["begins", "ends"]


class Broken:
    def rollouts(self, request: Any, generator: Any) -> Any:
        raise ValueError("the tool broke")


def test_a_round_that_fails_is_told_to_the_generator(make_run: MakeRun) -> None:
    generator = Together()
    with pytest.raises(PluginError, match="environment Broken failed in rollouts"):
        train(make_run(generator=generator, environment=Broken()))
    assert generator.heard[0] == "begins"
    assert "the tool broke" in generator.heard[1]
    # A prompt that does not fit, of which the ranks that have others know nothing.
    generator = Together()
    run = make_run(generator=generator)
    run.policy.encoder = None  # type: ignore[misc]
    with pytest.raises(AttributeError, match="encode"):
        run.sample_round(0, 0, range(2))
    assert generator.heard[0] == "begins"
    assert "encode" in generator.heard[1], "the error is not the generator's"


def test_a_round_that_the_generator_cannot_end_is_its_failure(make_run: MakeRun) -> None:
    class Lonely(Together):
        @contextmanager
        def together(self) -> Iterator[None]:
            yield
            raise OSError("the other rank has gone")

    with pytest.raises(PluginError, match="generator Lonely failed in together: OSError: the othe"):
        train(make_run(generator=Lonely()))
