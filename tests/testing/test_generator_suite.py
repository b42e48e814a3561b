"""The suite for generators, on the scripted one and on generators that break one promise each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from grpo_core.policy import Policy
from grpo_core.protocols import Generator
from grpo_core.testing import GeneratorSuite, ScriptedConfig, ScriptedGenerator
from grpo_generator_hf import HFGenerator


class TestScripted(GeneratorSuite):
    draws = False

    def make(self, policy: Policy) -> Generator:
        return ScriptedGenerator(ScriptedConfig(completions=("1", "<think>2</think>", "34")))


class OldWeights(HFGenerator):
    """Keeps the log-probs of its first weights, and says that it has the new ones."""

    def __init__(self) -> None:
        super().__init__()
        self._copied: Any = None

    def sync(self, update: Any) -> int:
        from copy import deepcopy

        self._copied = self._copied or deepcopy(update.model)
        return super().sync(replace(update, model=self._copied))


class Warm(HFGenerator):
    """Samples at another temperature than it was asked for."""

    def generate(self, request: Any) -> Any:
        warm = request.sampling.model_copy(
            update={"temperature": 1.5 * request.sampling.temperature}
        )
        return super().generate(replace(request, sampling=warm))


class Doubles(HFGenerator):
    def generate(self, request: Any) -> Any:
        for group in super().generate(request):
            yield group
            yield group


class Draws(HFGenerator):
    """Takes a number of the run's generator."""

    def generate(self, request: Any) -> Any:
        torch.rand(1)
        return super().generate(request)


class OneSeed(HFGenerator):
    def generate(self, request: Any) -> Any:
        return super().generate(replace(request, seed=0, step=0))


class NoEnd(HFGenerator):
    """Does not know of stop strings."""

    def generate(self, request: Any) -> Any:
        deaf = request.sampling.model_copy(update={"stop": ()})
        return super().generate(replace(request, sampling=deaf))


class Unpenalised(HFGenerator):
    """Reports the distribution after truncation."""

    def generate(self, request: Any) -> Any:
        for group in super().generate(request):
            yield replace(
                group,
                completions_G=tuple(
                    replace(
                        c,
                        logprobs=tuple(
                            x - k
                            for x, k in zip(
                                c.logprobs, c.kept_logmass or (0.0,) * len(c.logprobs), strict=True
                            )
                        ),
                    )
                    for c in group.completions_G
                ),
            )


class ClosesOnce(HFGenerator):
    closed = False

    def close(self) -> None:
        assert not self.closed
        self.closed = True
        super().close()


class OtherPlace(HFGenerator):
    """Draws by another place than that of the rollout."""

    def sample_turns(self, request: Any) -> Any:
        def take(wait: bool) -> Any:
            return [replace(turn, sample=0, key=turn.sample + 9 * turn.key) for turn in taken(wait)]

        taken = request.take
        for sampled in super().sample_turns(replace(request, take=take)):
            turn = sampled.turn
            yield replace(sampled, turn=replace(turn, sample=turn.key % 9, key=turn.key // 9))


class ByOrder(HFGenerator):
    """Draws by the order in which turns come."""

    def sample_turns(self, request: Any) -> Any:
        asked: dict[int, Any] = {}

        def take(wait: bool) -> Any:
            found = []
            for turn in taken(wait):
                asked[len(asked)] = turn
                found.append(replace(turn, key=len(asked) - 1, sample=0))
            return found

        taken = request.take
        for sampled in super().sample_turns(replace(request, take=take)):
            yield replace(sampled, turn=asked[sampled.turn.key])


class LaterTurnsWait(HFGenerator):
    """Takes turns only when it has none."""

    def sample_turns(self, request: Any) -> Any:
        taken = request.take
        asked: list[Any] = []

        def take(wait: bool) -> Any:
            asked[:] = taken(wait) if wait else []
            return asked

        yield from super().sample_turns(replace(request, take=take))


class WarmTurns(HFGenerator):
    def sample_turns(self, request: Any) -> Any:
        warm = request.sampling.model_copy(update={"temperature": 1.5})
        return super().sample_turns(replace(request, sampling=warm))


class ForgetsTheLast(HFGenerator):
    """Ends when some tools have not answered yet."""

    def sample_turns(self, request: Any) -> Any:
        taken = request.take
        return super().sample_turns(replace(request, take=lambda wait: taken(False)))


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (OldWeights, "test_logprobs_are_the_policys_own_before_and_after_an_update"),
        (Warm, "test_logprobs_are_the_policys_own_before_and_after_an_update"),
        (Doubles, "test_every_group_comes_once_and_whole"),
        (Draws, "test_the_run_is_left_as_it_was"),
        (OneSeed, "test_one_request_twice_is_the_same_and_another_seed_is_not"),
        (NoEnd, "test_a_stop_string_ends_a_completion"),
        (Unpenalised, "test_truncation_and_penalty_change_no_logprob"),
        (ClosesOnce, "test_closing_twice_is_closing_once"),
        (OtherPlace, "test_a_first_turn_is_what_its_sample_says_in_a_whole_group"),
        (ByOrder, "test_turns_are_whole_whenever_tools_answer"),
        (ForgetsTheLast, "test_turns_are_whole_whenever_tools_answer"),
        (LaterTurnsWait, "test_a_turn_begins_and_ends_while_another_is_sampled"),
        (WarmTurns, "test_logprobs_of_turns_are_the_policys_own_before_and_after_an_update"),
    ],
)
def test_a_broken_promise_of_a_generator_is_found(broken: Any, check: str) -> None:
    class Suite(GeneratorSuite):
        def make(self, policy: Policy) -> Generator:
            made: Generator = broken()
            return made

    with pytest.raises(AssertionError):
        getattr(Suite(), check)()
