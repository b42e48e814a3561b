from collections.abc import Iterator
from dataclasses import replace

import pytest

from grpo_core.builtin.single_turn import SingleTurn
from grpo_core.errors import PluginError
from grpo_core.protocols import Environment
from grpo_core.settings import SamplingParams
from grpo_core.types import (
    Completion,
    GeneratedGroup,
    GenerateRequest,
    Prompt,
    RolloutRequest,
    WeightUpdate,
)


class Recorded:
    """A generator that yields what it was given."""

    def __init__(self, *groups: GeneratedGroup) -> None:
        self.groups = groups
        self.yielded = 0

    def sync(self, update: WeightUpdate) -> int:
        return update.policy_version

    def generate(self, request: GenerateRequest) -> Iterator[GeneratedGroup]:
        for group in self.groups:
            self.yielded += 1
            yield group

    def close(self) -> None:
        pass


REQUEST = RolloutRequest(
    prompts_P=(Prompt(id="a", content="A"), Prompt(id="b", content="B")),
    generate=GenerateRequest(
        step=4,
        seed=0,
        prompt_ids_P=((1, 5), (1, 6)),
        prompt_keys_P=(10, 13),
        group_size=2,
        sampling=SamplingParams(),
        eos_token_ids=(2,),
    ),
    decode=lambda ids: " ".join(map(str, ids)),
)


def group(index: int, **changed: object) -> GeneratedGroup:
    completions = (
        Completion(token_ids=(index, 2), logprobs=(-0.5, -0.25), finish_reason="stop"),
        Completion(token_ids=(7, 8), logprobs=(-1.0, -2.0), finish_reason="length"),
    )
    made = GeneratedGroup(index=index, completions_G=completions, policy_version=9)
    return replace(made, **changed)  # type: ignore[arg-type]


def test_groups_are_handed_on_whole_as_they_come() -> None:
    environment, generator = SingleTurn(), Recorded(group(1), group(0))
    assert isinstance(environment, Environment)
    stream = environment.rollouts(REQUEST, generator)
    first = next(stream)
    assert generator.yielded == 1
    assert [r.prompt.id for r in first] == ["b", "b"]
    assert [r.group for r in first] == [13, 13]
    assert [r.sample for r in first] == [0, 1]
    assert first[0].prompt_ids == (1, 6)
    assert first[0].text == "1 2"
    assert first[0].sampling_logprobs == (-0.5, -0.25)
    assert first[0].policy_version == 9
    assert first[1].truncated
    assert [r.prompt.id for rest in stream for r in rest] == ["a", "a"]


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ((group(1),), r"returned no completions for prompts \[0\] of 2 in step 4"),
        ((group(1), group(1)), "returned group 1 twice"),
        ((group(2),), "returned group 2 of a request with 2 prompts"),
        ((group(-1),), "returned group -1 of a request with 2 prompts"),
        (
            (group(0, completions_G=group(0).completions_G[:1]),),
            "returned 1 completions for prompt 0; the request asked for group_size=2",
        ),
        (
            (
                group(
                    0,
                    completions_G=(
                        Completion(token_ids=(1, 2), logprobs=(-1.0,), finish_reason="stop"),
                    )
                    * 2,
                ),
            ),
            "returned 2 tokens but 1 log-probs for completion 0 of prompt 0",
        ),
        (
            (group(0, completions_G=(replace(group(0).completions_G[0], kept_logmass=()),) * 2),),
            "returned 2 tokens but 0 values of kept_logmass for completion 0 of prompt 0",
        ),
        (
            (
                group(
                    0, completions_G=(replace(group(0).completions_G[0], policy_versions=(1,)),) * 2
                ),
            ),
            "returned 2 tokens but 1 policy_versions for completion 0 of prompt 0",
        ),
    ],
)
def test_a_generator_that_breaks_its_word_is_named(
    groups: tuple[GeneratedGroup, ...], expected: str
) -> None:
    with pytest.raises(PluginError, match=expected) as caught:
        list(SingleTurn().rollouts(REQUEST, Recorded(*groups)))
    assert "Recorded" in str(caught.value)


def test_weights_that_changed_on_the_way_make_spans_of_their_own() -> None:
    completion = Completion(
        token_ids=(5, 6, 7, 2),
        logprobs=(-1.0, -2.0, -3.0, -4.0),
        finish_reason="stop",
        kept_logmass=(-0.1, -0.2, -0.3, -0.4),
        policy_versions=(3, 3, 4, 6),
    )
    spans = completion.spans(9)
    assert [s.policy_version for s in spans] == [3, 4, 6]
    assert [s.token_ids for s in spans] == [(5, 6), (7,), (2,)]
    assert [s.logprobs for s in spans] == [(-1.0, -2.0), (-3.0,), (-4.0,)]
    assert [s.kept_logmass for s in spans] == [(-0.1, -0.2), (-0.3,), (-0.4,)]
    (whole,) = replace(completion, policy_versions=None).spans(9)
    assert whole.policy_version == 9
    (empty,) = Completion(token_ids=(), logprobs=(), finish_reason="stop").spans(9)
    assert empty.policy_version == 9
