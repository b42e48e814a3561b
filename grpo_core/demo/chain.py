"""Chained arithmetic modulo 10: the chains, their texts and which of them are held out.

A chain is a start digit and a series of operations, applied strictly from left to right, each
result taken modulo 10. There is no operator precedence: `2 -1 *1 *7 *6 mod 10=?` means
`((((2-1)*1)*7)*6) mod 10`, which is 2.

Answers are not uniform, because multiplication favours 0. Over all 8,100,000 chains of four
operations the exact share of the answer 0 is 18.0 %, so that is what always answering `0` scores.
"""

import hashlib
import re
from dataclasses import dataclass
from typing import Literal

MODULUS = 10
OPERATORS = "+-*"
_VARIANTS_PER_OPERATION = len(OPERATORS) * MODULUS

Split = Literal["train", "eval"]


@dataclass(frozen=True, slots=True)
class Chain:
    """One problem: `start` in 0..9, then (operator, digit) pairs in the order of evaluation."""

    start: int
    operations: tuple[tuple[str, int], ...]


def apply(value: int, operator: str, operand: int) -> int:
    """The result of one operation modulo 10, in 0..9; ValueError for an unknown operator."""
    match operator:
        case "+":
            return (value + operand) % MODULUS
        case "-":
            return (value - operand) % MODULUS
        case "*":
            return (value * operand) % MODULUS
    raise ValueError(f"unknown operator {operator!r}; known are {', '.join(OPERATORS)}")


def question(chain: Chain) -> str:
    """What the user asks, for example `2 -1 *1 *7 *6 mod 10=?`."""
    operations = " ".join(f"{operator}{operand}" for operator, operand in chain.operations)
    return f"{chain.start} {operations} mod {MODULUS}=?"


def answer(chain: Chain) -> str:
    """The one correct digit, as text."""
    value = chain.start
    for operator, operand in chain.operations:
        value = apply(value, operator, operand)
    return str(value)


def reasoned_completion(chain: Chain) -> str:
    """The answer derived step by step, for example
    `<think>2-1=1 1*1=1 1*7=7 7*6=2</think><answer>2</answer>`.
    """
    value = chain.start
    steps = []
    for operator, operand in chain.operations:
        result = apply(value, operator, operand)
        steps.append(f"{value}{operator}{operand}={result}")
        value = result
    return f"<think>{' '.join(steps)}</think><answer>{value}</answer>"


def immediate_completion(chain: Chain) -> str:
    """The answer given at once, without reasoning: `<think></think><answer>2</answer>`."""
    return f"<think></think><answer>{answer(chain)}</answer>"


def answered(completion: str) -> str | None:
    """The content of the first answer tag, or None where there is no complete one."""
    found = re.search(r"<answer>(.*?)</answer>", completion, flags=re.DOTALL)
    return found.group(1).strip() if found else None


def capacity(split: Split, operations: int) -> int:
    """How many different chains of that many operations the split holds."""
    tails: int = _VARIANTS_PER_OPERATION**operations
    return tails if split == "eval" else tails * (MODULUS - 1)


def nth_chain(split: Split, operations: int, number: int) -> Chain:
    """The chain with this number, 0 <= number < `capacity(split, operations)`, of a split.

    Of the ten chains that share a tail (everything behind the start digit) exactly one is held
    out, and a hash of the tail says which. So the splits are disjoint and complete whatever the
    seed and the sizes, and drawing from one needs no search. IndexError outside the range.
    """
    if not 0 <= number < capacity(split, operations):
        raise IndexError(
            f"chain {number} of split {split!r} does not exist; with {operations} operations it "
            f"holds {capacity(split, operations)}"
        )
    if split == "eval":
        tail = _tail(operations, number)
        return Chain(_held_out_start(tail), tail)
    number, offset = divmod(number, MODULUS - 1)
    tail = _tail(operations, number)
    return Chain((_held_out_start(tail) + 1 + offset) % MODULUS, tail)


def _tail(operations: int, number: int) -> tuple[tuple[str, int], ...]:
    tail = []
    for _ in range(operations):
        number, variant = divmod(number, _VARIANTS_PER_OPERATION)
        operator, operand = divmod(variant, MODULUS)
        tail.append((OPERATORS[operator], operand))
    return tuple(tail)


def _held_out_start(tail: tuple[tuple[str, int], ...]) -> int:
    text = "".join(f"{operator}{operand}" for operator, operand in tail)
    # Not hash(): it is salted per process, so that one run's held-out chains would be another's
    # training chains.
    return int.from_bytes(hashlib.sha256(text.encode()).digest()) % MODULUS
