"""The task: deterministic prompts, disjoint splits whatever the seeds and sizes."""

import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from grpo_core.demo.arithmetic import Arithmetic
from grpo_core.demo.config import ArithmeticConfig

seeds = st.integers(0, 2**32)


def task(**settings: int) -> Arithmetic:
    return Arithmetic(ArithmeticConfig(**settings), context=None)


def test_a_prompt_is_one_user_message_with_its_answer() -> None:
    prompt = task().train_prompts()[0]
    assert prompt.conversational
    assert not isinstance(prompt.content, str)
    (message,) = prompt.content
    assert message["role"] == "user"
    assert message["content"] == f"{prompt.id}=?"
    assert set(prompt.columns) == {"answer", "operations"}
    assert prompt.columns["operations"] == 4
    assert prompt.columns["answer"] in set("0123456789")


@settings(max_examples=25)
@given(seeds, seeds, st.integers(1, 3), st.integers(1, 250), st.integers(1, 30))
def test_splits_of_different_seeds_and_sizes_are_disjoint(
    train_seed: int, eval_seed: int, operations: int, train_size: int, eval_size: int
) -> None:
    train = task(
        seed=train_seed, operations=operations, train_size=train_size, eval_size=1
    ).train_prompts()
    held_out = task(
        seed=eval_seed, operations=operations, train_size=1, eval_size=eval_size
    ).eval_prompts()
    assert len(train) == train_size
    assert len(held_out) == eval_size
    ids = [prompt.id for prompt in train] + [prompt.id for prompt in held_out]
    assert len(set(ids)) == train_size + eval_size


def test_large_splits_are_disjoint() -> None:
    train = task(seed=1, train_size=50_000).train_prompts()
    held_out = task(seed=2, eval_size=50_000).eval_prompts()
    assert {prompt.id for prompt in train}.isdisjoint(prompt.id for prompt in held_out)


def test_the_same_seed_gives_the_same_prompts_and_another_seed_others() -> None:
    assert list(task(seed=3).eval_prompts()) == list(task(seed=3).eval_prompts())
    assert list(task(seed=3).train_prompts()[:50]) == list(task(seed=3).train_prompts()[:50])
    assert list(task(seed=3).train_prompts()[:50]) != list(task(seed=4).train_prompts()[:50])


def test_the_first_prompts_of_seed_0_stay_what_they_are() -> None:
    """A change here changes every recorded run, so that it must be meant."""
    shown = [prompt.id for prompt in task().train_prompts()[:2]]
    assert shown == ["8 *6 +5 -5 *6 mod 10", "5 *8 *1 *2 -7 mod 10"]
    assert [prompt.id for prompt in task().eval_prompts()[:2]] == [
        "2 +1 -5 -4 +1 mod 10",
        "1 *0 -6 -1 +2 mod 10",
    ]


def test_prompts_behave_as_a_sequence() -> None:
    prompts = task(train_size=10).train_prompts()
    assert prompts[-1] == prompts[9] == list(prompts)[9]
    assert list(prompts[2:5]) == [prompts[2], prompts[3], prompts[4]]
    with pytest.raises(IndexError):
        prompts[10]


def test_held_out_answers_are_distributed_as_training_answers_are() -> None:
    """A split by hash must not leave one of the splits with easier answers."""
    size = 20_000
    splits = task(train_size=size).train_prompts(), task(eval_size=size).eval_prompts()
    train, held_out = (Counter(prompt.columns["answer"] for prompt in split) for split in splits)
    for digit in "0123456789":
        share = train[digit] / size
        five_sigma = 5 * (2 * share * (1 - share) / size) ** 0.5
        assert abs(share - held_out[digit] / size) < five_sigma
    assert abs(held_out["0"] / size - 0.18) < 0.015


def test_more_prompts_than_exist_is_an_error_that_says_how_many_exist() -> None:
    with pytest.raises(ValidationError, match="eval_size=256, but only 30 different chains"):
        ArithmeticConfig(operations=1, train_size=10)
    with pytest.raises(ValidationError, match="train_size=300, but only 270"):
        ArithmeticConfig(operations=1, train_size=300, eval_size=30)


def test_unknown_fields_are_rejected_and_every_field_is_described() -> None:
    with pytest.raises(ValidationError, match="operation"):
        ArithmeticConfig.model_validate({"operation": 3})
    assert all(field.description for field in ArithmeticConfig.model_fields.values())


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("grpo_core.demo", ("torch", "pydantic")),
        ("grpo_core.demo.arithmetic", ("torch",)),
        ("grpo_core.demo.config", ("torch",)),
    ],
)
def test_imports_stay_light(module: str, absent: tuple[str, ...]) -> None:
    probe = f"import sys, {module}; print([m for m in {absent!r} if m in sys.modules])"
    shown = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True
    ).stdout
    assert shown.strip() == "[]"
