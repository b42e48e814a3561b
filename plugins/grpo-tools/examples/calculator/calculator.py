"""Products of two numbers of two digits, and a tool that can do them."""

import random
from collections.abc import Sequence

from grpo_core.types import Prompt


def mul(a: int, b: int) -> int:
    """Multiply two numbers.

    Args:
        a: The first number.
        b: The second number.
    """
    return a * b


class Products:
    """Prompts such as ``47*86=?``; a sixth of the 8,100 products is held out."""

    def __init__(self, seed: int = 0) -> None:
        pairs = [(a, b) for a in range(10, 100) for b in range(10, 100)]
        random.Random(seed).shuffle(pairs)
        self._held_out, self._train = pairs[:1350], pairs[1350:]

    def train_prompts(self) -> Sequence[Prompt]:
        return [_prompt(a, b) for a, b in self._train]

    def eval_prompts(self) -> Sequence[Prompt]:
        return [_prompt(a, b) for a, b in self._held_out]


def _prompt(a: int, b: int) -> Prompt:
    question = f"{a}*{b}=?"
    return Prompt(
        id=question,
        content=({"role": "user", "content": question},),
        columns={"answer": str(a * b)},
    )
