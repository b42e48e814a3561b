"""Chains have the right answers, and the splits never meet."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_core.demo.chain import (
    Chain,
    answer,
    answered,
    apply,
    capacity,
    immediate_completion,
    nth_chain,
    question,
    reasoned_completion,
)

chains = st.builds(
    Chain,
    start=st.integers(0, 9),
    operations=st.lists(
        st.tuples(st.sampled_from("+-*"), st.integers(0, 9)), min_size=1, max_size=12
    ).map(tuple),
)


def left_to_right(expression: str) -> int:
    """Python's own arithmetic, with parentheses that force the order that is promised."""
    start, *operations = expression.split()
    nested = start
    for operation in operations:
        nested = f"({nested}{operation})"
    return int(eval(nested, {"__builtins__": {}})) % 10


@given(chains)
def test_answer_is_pythons_own_result_from_left_to_right(chain: Chain) -> None:
    asked = question(chain).removesuffix(" mod 10=?")
    assert answer(chain) == str(left_to_right(asked))


def test_precedence_does_not_apply() -> None:
    chain = Chain(2, (("+", 3), ("*", 4)))
    assert question(chain) == "2 +3 *4 mod 10=?"
    assert answer(chain) == "0"  # (2+3)*4 = 20; with precedence it would be 14
    assert reasoned_completion(chain) == "<think>2+3=5 5*4=0</think><answer>0</answer>"


def test_the_documented_example() -> None:
    chain = Chain(2, (("-", 1), ("*", 1), ("*", 7), ("*", 6)))
    assert question(chain) == "2 -1 *1 *7 *6 mod 10=?"
    assert reasoned_completion(chain) == (
        "<think>2-1=1 1*1=1 1*7=7 7*6=2</think><answer>2</answer>"
    )


@given(chains)
def test_every_written_step_is_true_and_starts_where_the_last_ended(chain: Chain) -> None:
    steps = re.findall(r"(\d)([+*-])(\d)=(\d)", reasoned_completion(chain))
    assert [(operator, int(operand)) for _, operator, operand, _ in steps] == list(chain.operations)
    values = [str(chain.start), *(result for *_, result in steps)]
    for (left, operator, right, result), before in zip(steps, values, strict=False):
        assert left == before
        assert int(eval(left + operator + right)) % 10 == int(result)
    assert values[-1] == answer(chain)


@given(chains)
def test_both_completions_carry_the_right_answer(chain: Chain) -> None:
    assert answered(reasoned_completion(chain)) == answer(chain)
    assert answered(immediate_completion(chain)) == answer(chain)


@pytest.mark.parametrize("text", ["", "2", "<answer>2", "<think>1+1=2</think>"])
def test_an_incomplete_answer_is_no_answer(text: str) -> None:
    assert answered(text) is None


def test_an_unknown_operator_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown operator '/'"):
        apply(1, "/", 2)


@pytest.mark.parametrize("operations", [1, 2])
def test_the_splits_are_disjoint_complete_and_without_repetition(operations: int) -> None:
    train = [
        nth_chain("train", operations, number) for number in range(capacity("train", operations))
    ]
    held_out = [
        nth_chain("eval", operations, number) for number in range(capacity("eval", operations))
    ]
    everything = {
        Chain(start, tail)
        for start in range(10)
        for tail in itertools.product(itertools.product("+-*", range(10)), repeat=operations)
    }
    assert len(set(train)) == len(train)
    assert len(set(held_out)) == len(held_out)
    assert set(train).isdisjoint(held_out)
    assert set(train) | set(held_out) == everything


def test_a_number_outside_the_split_is_an_error() -> None:
    for number in (-1, capacity("eval", 1)):
        with pytest.raises(IndexError, match="holds 30"):
            nth_chain("eval", 1, number)
